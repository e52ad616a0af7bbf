//! What every store must do, whatever it is built on: each contract runs on every implementation.

mod content;
pub(crate) mod fixtures;
mod fleet;
mod rollouts;
mod stacks;
mod writes;

use std::sync::Arc;

use super::{Store, sqlite::SqliteStore};

/// A store under test, and the directory it lives in.
pub(crate) struct Subject {
    pub store: Arc<dyn Store>,
    _dir: Option<tempfile::TempDir>,
}

async fn subjects() -> Vec<Subject> {
    let dir = tempfile::tempdir().unwrap();
    let disk = SqliteStore::open(dir.path()).await.unwrap();
    let memory = SqliteStore::memory().await.unwrap();
    vec![Subject { store: Arc::new(disk), _dir: Some(dir) }, Subject { store: Arc::new(memory), _dir: None }]
}

macro_rules! contract {
    ($($module:ident: $($name:ident),+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                for subject in subjects().await {
                    $module::$name(subject.store).await;
                }
            }
        )+)+
    };
}

contract! {
    writes: a_batch_is_written_whole_or_not_at_all, many_writers_share_commits_and_stay_atomic,
        a_request_is_carried_out_once, a_request_id_with_another_body_is_refused, notices_come_after_the_commit,
        the_audit_says_who_and_what, the_epoch_is_raised_by_one;
    fleet: nodes_are_guarded_by_revision, sessions_displace_and_close_only_themselves,
        nodes_are_paged_by_name, who_changed_a_component_stays_known, generations_only_grow,
        rows_need_their_node;
    content: releases_take_a_version_and_a_sequence, artifacts_in_use_stay, quarantines_collect_and_lift,
        certificates_are_revoked_for_good, one_of_many_uses_a_token, a_token_is_good_for_what_it_says;
    rollouts: revisions_are_gapless_and_per_rollout, reports_are_recorded_once_and_in_order,
        an_ended_upgrade_stays_ended_unless_presumed, stale_rollouts_and_upgrades_are_refused,
        a_refusal_ends_what_has_not_begun, lists_are_paged_and_filtered;
    stacks: a_patch_number_is_of_one_release, each_component_is_visited_once, what_is_wrong_is_counted,
        jvms_are_replaced_as_a_whole, the_end_of_an_upgrade_says_what_runs, history_has_each_attempt_and_each_change_by_hand;
}
