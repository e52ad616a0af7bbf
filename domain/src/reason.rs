//! Why something waits, failed or was refused: the one list of machine-readable causes.
//!
//! A [`Reason`] is a code with values; its sentence is made from the code's template, so that a text is
//! never parsed and a value never lost. Policy reads codes, people read sentences. `docs/reference/reasons.md`
//! is generated from [`ReasonCode::ALL`].

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize};

use crate::time::Time;

/// Who acts next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The node's agent.
    Agent,
    /// The controller.
    Controller,
    /// A person who runs the fleet.
    Operator,
    /// A person who publishes releases.
    Publisher,
    /// Nothing is left to do.
    Nobody,
}

impl Actor {
    /// As on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
            Self::Operator => "operator",
            Self::Publisher => "publisher",
            Self::Nobody => "nobody",
        }
    }
}

/// What kind of answer a reason is; the wire maps each to one gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Not an error: a state's reason.
    Information,
    /// The caller sent something wrong.
    InvalidArgument,
    /// No such thing.
    NotFound,
    /// It exists already, or the same request id came with another body.
    AlreadyExists,
    /// Not now: the state does not permit it.
    FailedPrecondition,
    /// A stale etag or generation; read again and retry.
    Aborted,
    /// Who are you.
    Unauthenticated,
    /// You may not.
    PermissionDenied,
    /// A budget or limit is used up.
    ResourceExhausted,
    /// The node or the store is away; retry.
    Unavailable,
    /// Stored bytes are not what they were.
    DataLoss,
    /// Not built.
    Unimplemented,
    /// Ours.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $class:ident, $actor:ident, $text:literal $(, hint $hint:literal)?;)+) => {
        /// A machine-readable cause.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[non_exhaustive]
        pub enum ReasonCode {
            $(#[doc = $text] #[serde(rename = $code)] $(#[$doc])* $name,)+
        }

        impl ReasonCode {
            /// All of them, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// As on the wire, e.g. `DIGEST_MISMATCH`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// What kind of answer it is.
            #[must_use]
            pub fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)+ }
            }

            /// Who acts next.
            #[must_use]
            pub fn actor(self) -> Actor {
                match self { $(Self::$name => Actor::$actor,)+ }
            }

            /// The sentence, with `{key}` where a value goes.
            #[must_use]
            pub fn template(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What to do about it, where that can be said once for all.
            #[must_use]
            pub fn hint(self) -> Option<&'static str> {
                match self { $(Self::$name => reasons!(@hint $($hint)?),)+ }
            }
        }
    };
    (@hint) => { None };
    (@hint $hint:literal) => { Some($hint) };
}

reasons! {
    // Requests.
    NotFound = "NOT_FOUND", NotFound, Operator, "{what} `{name}` does not exist";
    AlreadyExists = "ALREADY_EXISTS", AlreadyExists, Operator, "{what} `{name}` exists already";
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, Operator, "`{field}` is not valid: {problem}";
    RequestIdReused = "REQUEST_ID_REUSED", AlreadyExists, Operator, "request id `{request_id}` was used for another request",
        hint "use a new UUID for each new request";
    EtagMismatch = "ETAG_MISMATCH", Aborted, Operator, "{what} `{name}` was changed by somebody else",
        hint "read it again, then repeat the change";
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated, Operator, "no valid client certificate was presented";
    PermissionDenied = "PERMISSION_DENIED", PermissionDenied, Operator, "{caller} may not call {method}; it needs {needs}",
        hint "an admin can issue another role: upfleet user issue NAME --role ROLE";
    NotImplemented = "NOT_IMPLEMENTED", Unimplemented, Nobody, "{feature} is not available in this version";
    Internal = "INTERNAL", Internal, Operator, "the controller failed; its log has the details under id {log_id}",
        hint "report it together with the log lines of that id";
    StoreUnavailable = "STORE_UNAVAILABLE", Unavailable, Operator, "the controller's store can't be written: {problem}",
        hint "check the disk that holds the controller's data directory; the request can be repeated";
    StoreDamaged = "STORE_DAMAGED", DataLoss, Operator, "the controller's database is damaged: {problem}",
        hint "stop the controller and put a backup back: upfleet restore; agents and components go on meanwhile";
    LimitExceeded = "LIMIT_EXCEEDED", ResourceExhausted, Operator, "{what} exceeds its limit of {limit}";

    Other = "OTHER", Information, Operator, "{message}",
        hint "the other side is of a later version and gave a reason that this one does not know";

    // Artifacts and releases.
    ArtifactInUse = "ARTIFACT_IN_USE", FailedPrecondition, Publisher, "artifact {digest} is named by {releases}";
    ArtifactMissing = "ARTIFACT_MISSING", FailedPrecondition, Publisher, "artifact {digest} was not uploaded and the manifest names no source for it",
        hint "upfleet artifact upload FILE";
    ArtifactDigestMismatch = "ARTIFACT_DIGEST_MISMATCH", InvalidArgument, Publisher, "the uploaded bytes have SHA-256 {actual}, not {expected}";
    ArtifactSizeMismatch = "ARTIFACT_SIZE_MISMATCH", InvalidArgument, Publisher, "{actual} bytes were uploaded, not {expected}";
    ArtifactDamaged = "ARTIFACT_DAMAGED", DataLoss, Operator, "the stored bytes of artifact {digest} have changed on the controller's disk",
        hint "upload the artifact again; check the disk";
    UploadOffsetMismatch = "UPLOAD_OFFSET_MISMATCH", Aborted, Publisher, "the upload stands at byte {expected}, not {actual}",
        hint "ask for the offset again and resume there";
    UploadBusy = "UPLOAD_BUSY", Aborted, Publisher, "another client is uploading {digest} right now";
    ManifestInvalid = "MANIFEST_INVALID", InvalidArgument, Publisher, "the manifest is not valid: {problem}";
    SequenceTaken = "SEQUENCE_TAKEN", AlreadyExists, Publisher, "{component} already has a release with sequence {sequence}: {version}",
        hint "give the new release a higher --sequence";
    ReleaseYanked = "RELEASE_YANKED", FailedPrecondition, Publisher, "release {release} was yanked: {message}";
    ReleaseQuarantined = "RELEASE_QUARANTINED", FailedPrecondition, Operator, "artifact {digest} of {release} rolled back on {count} nodes and is quarantined",
        hint "publish a mended release, or: upfleet release unquarantine RELEASE";

    // Identity.
    TokenInvalid = "TOKEN_INVALID", Unauthenticated, Operator, "the enrollment token is unknown, used up, expired, or for another node",
        hint "create a new one: upfleet token create";
    TooManyAttempts = "TOO_MANY_ATTEMPTS", ResourceExhausted, Operator, "too many failed attempts from {address}; wait a minute";
    NodeExists = "NODE_EXISTS", AlreadyExists, Operator, "node `{node}` is enrolled already",
        hint "retire the old node first, or create the token with --allow-replace";
    CsrInvalid = "CSR_INVALID", InvalidArgument, Operator, "the certificate request is not valid: {problem}";
    CertificateUnknown = "CERTIFICATE_UNKNOWN", Unauthenticated, Operator, "the certificate is not one of this fleet's",
        hint "enroll the node again with a new token";
    CertificateRevoked = "CERTIFICATE_REVOKED", PermissionDenied, Operator, "the certificate was revoked",
        hint "enroll again with a new token, or ask an admin for a new user certificate";
    CertificateExpired = "CERTIFICATE_EXPIRED", PermissionDenied, Operator, "the certificate expired more than 90 days ago",
        hint "enroll the node again with a new token";
    CloneSuspected = "CLONE_SUSPECTED", PermissionDenied, Operator, "two agents use the key of node `{node}` in turn; its certificate is suspended",
        hint "find the copy, then: upfleet node uncordon NODE (or retire it and enroll both anew)";
    SessionDisplaced = "SESSION_DISPLACED", Aborted, Agent, "another agent process of node `{node}` took the session over",
        hint "one agent runs per node; if two do, stop one of them";
    ForeignReport = "FOREIGN_REPORT", PermissionDenied, Operator, "node `{node}` reported of upgrade {upgrade}, which is another node's",
        hint "the agent's state directory was copied from another node, or the agent lies: empty it and enroll the node anew";
    ControllerStopping = "CONTROLLER_STOPPING", Unavailable, Agent, "the controller is stopping; connect again soon";
    NodeOffline = "NODE_OFFLINE", Unavailable, Operator, "node `{node}` is not connected; it was last heard {last_seen}";
    NodeNotActive = "NODE_NOT_ACTIVE", FailedPrecondition, Operator, "node `{node}` is {state}";

    // Planning: why a request or a node is out.
    EmptyPlan = "EMPTY_PLAN", FailedPrecondition, Operator, "no node is left to change: {matched} matched `{selector}`, {excluded} were left out{first}",
        hint "upfleet plan shows the reason for each node";
    PlanChanged = "PLAN_CHANGED", FailedPrecondition, Operator, "the fleet has changed since the plan was made: {difference}",
        hint "plan again and look at the difference";
    ConcurrentRollout = "CONCURRENT_ROLLOUT", FailedPrecondition, Operator, "rollout {rollout} of {component} is under way on {count} of these nodes";
    NodeCordoned = "NODE_CORDONED", Information, Operator, "cordoned";
    NodeSuspended = "NODE_SUSPENDED", Information, Operator, "suspended: two agents used its key";
    ComponentNotOnNode = "COMPONENT_NOT_ON_NODE", Information, Operator, "`{component}` is not in the node's configuration";
    OtherRollout = "OTHER_ROLLOUT", Information, Operator, "in rollout {rollout}";
    NothingToRestore = "NOTHING_TO_RESTORE", Information, Operator, "has kept no such state";
    NotChangedByRollout = "NOT_CHANGED_BY_ROLLOUT", Information, Nobody, "was not changed by {rollout}";
    PatchedSince = "PATCHED_SINCE", Information, Operator, "has got patch {number} after {rollout}: going back to before it would take that off as well",
        hint "revert that rollout first, or take single patches off: upfleet rollout start --remove-patch N";

    // Rollouts.
    IllegalTransition = "ILLEGAL_TRANSITION", FailedPrecondition, Operator, "a rollout that is {state} can't be {action}";
    FailedNodesUndecided = "FAILED_NODES_UNDECIDED", InvalidArgument, Operator, "{count} nodes have failed: say what becomes of them",
        hint "upfleet rollout resume ROLLOUT --failed retry|skip|revert";
    RolloutPlanned = "ROLLOUT_PLANNED", Information, Operator, "planned, not started";
    AwaitingApproval = "AWAITING_APPROVAL", Information, Operator, "waits for approval of {what}",
        hint "upfleet rollout approve ROLLOUT";
    RolloutRunning = "ROLLOUT_RUNNING", Information, Agent, "wave {wave} of {waves} is under way";
    Paused = "PAUSED", Information, Operator, "paused by {actor}: {message}",
        hint "upfleet rollout resume ROLLOUT";
    RestoredFromBackup = "RESTORED_FROM_BACKUP", Information, Operator, "paused because the controller was restored from a backup",
        hint "look at the fleet, then: upfleet rollout resume ROLLOUT";
    BudgetExceeded = "BUDGET_EXCEEDED", Information, Operator, "{failed} of {attempted} nodes failed ({cause}), more than the budget of {limit}; first {node}: {first}",
        hint "upfleet rollout resume ROLLOUT --failed retry|skip|revert, or cancel";
    SilenceExceeded = "SILENCE_EXCEEDED", Information, Operator, "{silent} nodes are silent, more than the budget of {limit}";
    RollingBackFailed = "ROLLOUT_ROLLBACK_FAILED", Information, Operator, "{count} nodes could not be put back: {nodes}";
    Cancelled = "CANCELLED", Information, Nobody, "cancelled by {actor}: {message}";
    Cancelling = "CANCELLING", Information, Agent, "{count} nodes are being put back after {actor} cancelled";
    RevertingIn = "REVERTING_IN", Information, Controller, "nodes are put back by rollout {rollout}";
    RevertWaits = "REVERT_WAITS", Information, Agent, "{count} nodes under way end before nodes are put back: {why}";
    NothingToRevert = "NOTHING_TO_REVERT", Information, Nobody, "no node had to be put back: {why}";
    Reverted = "REVERTED", Information, Nobody, "the nodes were put back by rollout {rollout}";
    RevertFailed = "REVERT_FAILED", Information, Operator, "rollout {rollout} could not put back every node";
    RolloutSucceeded = "ROLLOUT_SUCCEEDED", Information, Nobody, "all {count} nodes are done";
    RolloutFailures = "ROLLOUT_SUCCEEDED_WITH_FAILURES", Information, Operator, "{succeeded} of {count} nodes are done; {failed} failed, {skipped} were skipped, {away} stayed away";
    RolloutOffline = "ROLLOUT_OFFLINE", Information, Agent, "waits for {count} nodes that are not connected, until the deadline",
        hint "upfleet rollout skip ROLLOUT NODE leaves one out";
    WavePending = "WAVE_PENDING", Information, Controller, "waits for wave {wave}";
    WaveRunning = "WAVE_RUNNING", Information, Agent, "{busy} under way, {left} to go";
    WaveBaking = "WAVE_BAKING", Information, Controller, "watched after its nodes are done";
    WaveSucceeded = "WAVE_SUCCEEDED", Information, Nobody, "done";
    WaveFailed = "WAVE_FAILED", Information, Operator, "a failure budget was exceeded";
    MaxUnavailable = "MAX_UNAVAILABLE", Information, Controller, "waits: {unavailable} of at most {limit} nodes are unavailable";
    Offline = "OFFLINE", Information, Agent, "not connected; gets the order when it returns",
        hint "look at the agent on the node: upfleet-agent status";
    Skipped = "SKIPPED", Information, Nobody, "left out by {actor}: {message}";
    ControllerBehind = "CONTROLLER_BEHIND", FailedPrecondition, Operator, "node `{node}` has seen generation {seen}, the controller only {own}: the controller's store is older than the fleet",
        hint "the store was replaced by an older copy; restore it with `upfleet restore`, which raises the epoch";

    // One node's upgrade: under way.
    WaitingForOrder = "WAITING_FOR_ORDER", Information, Controller, "waits for its turn";
    WaitingForAgent = "WAITING_FOR_AGENT", Information, Agent, "ordered; the agent has not begun";
    WaitingForExclusive = "WAITING_FOR_EXCLUSIVE", Information, Agent, "waits for `{component}`, which is configured exclusive with it";
    Checking = "CHECKING", Information, Agent, "checks disk, permission, platform and health";
    Fetching = "FETCHING", Information, Agent, "fetches {size} bytes";
    FetchRetrying = "FETCH_RETRYING", Information, Agent, "attempt {attempt} from {source} failed: {problem}; tries again";
    Verifying = "VERIFYING", Information, Agent, "hashes {what} as they lie on the disk";
    Staged = "STAGED", Information, Agent, "verified and in place beside the old version";
    HeldBefore = "HELD_BEFORE", Information, Controller, "waits before {phase} for a further order";
    Activating = "ACTIVATING", Information, Agent, "{step}";
    Probing = "PROBING", Information, Agent, "probe passed {passed} of {needed} times in a row";
    AgentReporting = "AGENT_REPORTING", Information, Controller, "the new agent runs and waits for the controller to acknowledge it";
    Soaking = "SOAKING", Information, Agent, "healthy; watched for {soak}";
    Draining = "DRAINING", Information, Agent, "the new process is healthy; the old one finishes what it has begun, for at most {limit}";
    Committing = "COMMITTING", Information, Agent, "healthy; removes states beyond the kept ones";
    PuttingBack = "PUTTING_BACK", Information, Agent, "puts {from} back: {why}";

    // One node's upgrade: how it ended well or was ended.
    Healthy = "HEALTHY", Information, Nobody, "healthy; runs {digest}";
    AlreadyCurrent = "ALREADY_CURRENT", Information, Nobody, "runs {digest} already";
    CancelledByOrder = "CANCELLED_BY_ORDER", Information, Nobody, "ended by a person before anything was touched";
    SupersededByOrder = "SUPERSEDED_BY_ORDER", Information, Nobody, "a newer order came before anything was touched";
    DeadlinePassed = "DEADLINE_PASSED", Information, Operator, "had not begun by the deadline for offline nodes",
        hint "upfleet rollout retry ROLLOUT once the node is back";

    // One node's upgrade: the node said no.
    UnknownComponent = "UNKNOWN_COMPONENT", FailedPrecondition, Operator, "`{component}` is not in the agent's configuration",
        hint "add a [[component]] on the node, then reload the agent";
    ComponentHeld = "COMPONENT_HELD", FailedPrecondition, Operator, "`{component}` is held by {actor}: {message}",
        hint "upfleet node release NODE COMPONENT";
    DowngradeRefused = "DOWNGRADE_REFUSED", FailedPrecondition, Operator, "sequence {offered} is lower than {current}",
        hint "the order needs --allow-downgrade and the component's configuration allow_downgrade = true";
    WrongBase = "WRONG_BASE", FailedPrecondition, Publisher, "needs base {expected}, the node runs {actual}";
    UntrustedManifest = "UNTRUSTED_MANIFEST", FailedPrecondition, Publisher, "the manifest can't be trusted: {problem}";
    KindUnsupported = "KIND_UNSUPPORTED", FailedPrecondition, Publisher, "releases of kind `{kind}` can't be installed by this agent";
    FailedDigest = "FAILED_DIGEST", FailedPrecondition, Operator, "{digest} rolled back on this node before",
        hint "upfleet rollout retry ROLLOUT --allow-failed-digest tries it once more";
    StateNotKept = "STATE_NOT_KEPT", FailedPrecondition, Operator, "{state} is not among the node's kept states";
    AgentEnding = "AGENT_ENDING", Unavailable, Agent, "the agent is ending; the order is offered again after its start";
    StaleGeneration = "STALE_GENERATION", Aborted, Controller, "order {offered} is older than {kept}";
    SourceNotAllowed = "SOURCE_NOT_ALLOWED", FailedPrecondition, Operator, "source {source} is not permitted: {problem}",
        hint "add the host to `allowed_hosts` in the agent's configuration";

    // One node's upgrade: stopped before anything was touched.
    DiskFull = "DISK_FULL", ResourceExhausted, Operator, "{path} has {available} bytes free, {needed} are needed",
        hint "free space on the node, then retry";
    NotPermitted = "NOT_PERMITTED", FailedPrecondition, Operator, "the agent may not {operation} `{path}`: {problem}";
    PlatformMismatch = "PLATFORM_MISMATCH", FailedPrecondition, Publisher, "the release has nothing for {platform}: {problem}";
    FetchFailed = "FETCH_FAILED", Unavailable, Operator, "could not fetch {digest} after {attempts} attempts: {problem}";
    SizeMismatch = "SIZE_MISMATCH", DataLoss, Publisher, "{source} gave {actual} bytes, the manifest says {expected}";
    DigestMismatch = "DIGEST_MISMATCH", DataLoss, Publisher, "SHA-256 is {actual}, the manifest says {expected}; from {source}",
        hint "the file was replaced after the release was made, or was damaged on the way";
    WrongCopy = "WRONG_COPY", DataLoss, Publisher, "{source} has {actual_size} bytes with SHA-256 {actual}, the manifest says {expected_size} bytes with {expected}",
        hint "what lies there is not the release's file, or not all of it: put the whole file there, then retry";
    Md5Mismatch = "MD5_MISMATCH", DataLoss, Publisher, "MD5 is {actual}, the manifest says {expected}; from {source}";
    StageFailed = "STAGE_FAILED", FailedPrecondition, Operator, "could not {operation} `{path}`: {problem}";
    AgentUnguarded = "AGENT_UNGUARDED", FailedPrecondition, Operator, "the agent can't be upgraded where nobody would put it back: {problem}",
        hint "run it by its unit, or by `upfleet-agent run --supervised`: docs/how-to/upgrade-agents.md";
    AgentTrialFailed = "AGENT_TRIAL_FAILED", FailedPrecondition, Publisher, "the new agent can't do its work on this node: {problem}",
        hint "nothing was touched; try the release on one node with upfleet-agent trial";
    GuardNotSet = "GUARD_NOT_SET", FailedPrecondition, Operator, "the guard of the agent's upgrade could not be set: {problem}",
        hint "nothing was touched; upfleet-agent status and the log say more";
    PhaseTimedOut = "PHASE_TIMED_OUT", FailedPrecondition, Operator, "{phase} took longer than {limit}";

    // One node's upgrade: touched.
    SwapFailed = "SWAP_FAILED", FailedPrecondition, Operator, "could not {operation} `{path}`: {problem}";
    StopFailed = "STOP_FAILED", FailedPrecondition, Operator, "the old process could not be stopped: {problem}";
    StartFailed = "START_FAILED", FailedPrecondition, Publisher, "the new process could not be started: {problem}";
    HandoverUnavailable = "HANDOVER_UNAVAILABLE", Information, Nobody, "stopped and started instead of handed over: {problem}",
        hint "nothing is to be done where it is said of the first upgrade after run.activate or a socket was configured";
    ProcessExited = "PROCESS_EXITED", FailedPrecondition, Publisher, "the process ended with {exit} after {after}";
    ProbeFailed = "PROBE_FAILED", FailedPrecondition, Publisher, "probe failed {failed} times: {problem}";
    ProbeTimedOut = "PROBE_TIMED_OUT", FailedPrecondition, Publisher, "not healthy within {limit}: {problem}";
    ProofMismatch = "PROOF_MISMATCH", FailedPrecondition, Operator, "{actual} runs, not {expected}";
    AgentPutBack = "AGENT_PUT_BACK", FailedPrecondition, Publisher, "the guard has put the agent before it back: {problem}",
        hint "the log of the new agent is in the node's journal, or in that of `upfleet-agent run --supervised`";
    CancelledAfterSwitch = "CANCELLED_AFTER_SWITCH", Information, Nobody, "ended by a person after the switch; {from} runs again";
    RolledBack = "ROLLED_BACK", Information, Publisher, "{from} runs again and is healthy; {why}";
    RolledBackFurther = "ROLLED_BACK_FURTHER", DataLoss, Operator, "the kept copy of {from} was damaged; {older}, kept before it, runs and is healthy; {why}",
        hint "check the node's disk";
    RollbackTargetDamaged = "ROLLBACK_TARGET_DAMAGED", DataLoss, Operator, "the kept copy of {state} has SHA-256 {actual}, not {expected}";
    RollbackUnhealthy = "ROLLBACK_UNHEALTHY", FailedPrecondition, Operator, "{from} was put back but is not healthy: {problem}",
        hint "log in to the node: upfleet-agent status, upfleet-agent diagnostics";
    RollbackStepFailed = "ROLLBACK_STEP_FAILED", FailedPrecondition, Operator, "{from} could not be put back: {problem}",
        hint "log in to the node: upfleet-agent status, upfleet-agent diagnostics";

    // Patches: what can't be put together.
    BaseMismatch = "BASE_MISMATCH", FailedPrecondition, Publisher, "patch {number} replaces {class} of SHA-256 {expected}, the node has {actual}",
        hint "the patch was built for another base: build one for the base that this node runs";
    ClassNotFound = "CLASS_NOT_FOUND", FailedPrecondition, Publisher, "patch {number} replaces {class}, which the application does not have",
        hint "where the application has it in a place that the command line does not say, name that in `class_path` of [component.jvm]";
    RevertsFix = "REVERTS_FIX", FailedPrecondition, Publisher, "patch {number} was not built from {class} of patch {other} and would undo its fix",
        hint "build the patch from the classes of the stack, or let it supersede that patch";
    SplitFamily = "SPLIT_FAMILY", FailedPrecondition, Publisher, "patch {number} ships {class} without {missing}, which then comes from {other}",
        hint "a class and its inner classes are compiled together: ship the whole family";
    Overlap = "OVERLAP", Information, Nobody, "{class} of patch {number} takes precedence over that of patch {other}, which it was built from";
    PatchRetired = "PATCH_RETIRED", Information, Nobody, "patch {number} retires: patch {other} supersedes it";
    PatchBack = "PATCH_BACK", Information, Nobody, "patch {number} is in force again: nothing supersedes it any more";
    PatchLeft = "PATCH_LEFT", Information, Nobody, "patch {number} does not go along to {release}";
    PatchSuperset = "PATCH_SUPERSET", Information, Operator, "patch {other} fixes all that patch {number} fixes, so that one may be taken out";
    ClassTwice = "CLASS_TWICE", Information, Operator, "{class} is also in {source}, with SHA-256 {actual}, which patch {number} does not replace";
    PatchRequires = "PATCH_REQUIRES", FailedPrecondition, Operator, "patch {number} needs patch {missing} in the stack";
    PatchContained = "PATCH_CONTAINED", FailedPrecondition, Nobody, "patch {number} is contained in patch {other}, which is in the stack";
    StackBuiltOn = "STACK_BUILT_ON", FailedPrecondition, Operator, "patch {other} is built on patch {number}: without it, its classes still hold that change",
        hint "remove both, or say --contained to have it recorded as still contained";
    NotInStack = "NOT_IN_STACK", FailedPrecondition, Operator, "patch {number} is not in the stack, which is {stack}";
    NumberTaken = "NUMBER_TAKEN", AlreadyExists, Publisher, "patch {number} of `{component}` is another release already: {release}";
    FixLost = "FIX_LOST", FailedPrecondition, Operator, "fix {fix} of patch {number} on {nodes} is neither in {release} nor in a patch for it",
        hint "release a patch for the new base, or say --waive-fix to do without it";
    ClassVersion = "CLASS_VERSION", FailedPrecondition, Publisher, "patch {number} needs Java {needed} ({class} has major version {major}), the node's JVM is Java {actual}",
        hint "compile the patch with --release for the oldest JVM it is for";
    PatchUnknown = "PATCH_UNKNOWN", FailedPrecondition, Operator, "the node has patch {number}, {release}, which was never published here",
        hint "upfleet release import FILE publishes it; --no-patches takes all off without knowing them";
    FixLacking = "FIX_LACKING", Information, Operator, "{state} does not have {fix}: {problem}",
        hint "upfleet rollout start puts a patch on";
    PatchInvalid = "PATCH_INVALID", InvalidArgument, Publisher, "the patch is not well made: {problem}";
    ArchiveHostile = "ARCHIVE_HOSTILE", InvalidArgument, Publisher, "the archive was refused at `{entry}`: {problem}";
    NotPatchable = "NOT_PATCHABLE", FailedPrecondition, Operator, "`{component}` takes no patches: {problem}",
        hint "give the component a [component.jvm] in the agent's configuration";

    // Patches: how they would get into the JVM.
    MechanismUnfit = "MECHANISM_UNFIT", FailedPrecondition, Operator, "{mechanism} would start cleanly and run the old code: {problem}",
        hint "set `mechanism` of [component.jvm] to one that fits, or leave it at \"auto\"";
    SignerMismatch = "SIGNER_MISMATCH", FailedPrecondition, Publisher, "{class} is in a package signed by {signer}, the patch is signed by {actual}",
        hint "sign the patch with the same certificate, or use the mechanism java-agent";
    PackageSealed = "PACKAGE_SEALED", FailedPrecondition, Publisher, "{class} is in a package that {jar} seals",
        hint "use the mechanism java-agent";
    ClassCache = "CLASS_CACHE", FailedPrecondition, Operator, "the JVM is started with {option}, which would run classes from a cache and not the patched ones",
        hint "take the option out of the command, or set caches = \"strip\" in [component.jvm]";
    JvmUnknown = "JVM_UNKNOWN", FailedPrecondition, Operator, "how the JVM is started can't be told: {problem}",
        hint "write the java command into `command`, or set `mechanism` and `class_path` of [component.jvm]";
    LiveImpossible = "LIVE_IMPOSSIBLE", FailedPrecondition, Publisher, "patch {number} can't take effect in a running JVM: {problem}",
        hint "roll it out without --live: it takes effect with a restart";
    LiveForbidden = "LIVE_FORBIDDEN", FailedPrecondition, Operator, "the node's configuration forbids to patch the running JVM: {problem}";
    RestartNeeded = "RESTART_NEEDED", FailedPrecondition, Operator, "the JVM is not run by the agent, so a restart patch can't take effect: {problem}",
        hint "roll it out with --live, or give the component a [component.reload] that restarts it";

    // Patches: attaching to a JVM.
    JvmGone = "JVM_GONE", FailedPrecondition, Operator, "no JVM of `{component}` runs: {problem}";
    JvmNotReady = "JVM_NOT_READY", Unavailable, Agent, "process {pid} is not ready to be attached to: {problem}";
    AttachRefused = "ATTACH_REFUSED", FailedPrecondition, Operator, "process {pid} can't be attached to: {problem}";
    AttachFailed = "ATTACH_FAILED", FailedPrecondition, Operator, "attaching to process {pid} failed: {problem}";
    RedefinitionRefused = "REDEFINITION_REFUSED", FailedPrecondition, Publisher, "the JVM refused the new classes, none is in force: {problem}";
    DynamicLoading = "DYNAMIC_LOADING", Information, Operator, "the JVM of process {pid} (Java {version}) warned on its standard error that a Java agent was loaded while it runs",
        hint "start it with -XX:+EnableDynamicAgentLoading, which later versions will ask for";
    OldFrame = "OLD_FRAME", Information, Operator, "in process {pid}, {thread}",
        hint "a method that is being executed runs on as it was; restart the JVM where it never returns";
    LivePatched = "LIVE_PATCHED", Information, Agent, "{classes} classes are in force in process {pid} without a restart";

    // Patches: the proof.
    ClassOld = "CLASS_OLD", FailedPrecondition, Operator, "{class} in loader {loader} runs SHA-256 {actual}, not {expected}: {problem}";
    ProofMissing = "PROOF_MISSING", FailedPrecondition, Operator, "the JVM does not say which classes are in force: {problem}";
    JarReplaced = "JAR_REPLACED", Information, Operator, "{path} on the disk is not the jar that process {pid} has open",
        hint "jars of a running JVM may be replaced by renaming only; restart it, then look what replaced it";
    StackDamaged = "STACK_DAMAGED", DataLoss, Operator, "{path} has SHA-256 {actual}, the stack says {expected}";
    PatchProved = "PATCH_PROVED", Information, Nobody, "healthy; classes proved: {proved}, armed: {armed}, by {mechanism}";

    // Files.
    LocalChanges = "LOCAL_CHANGES", FailedPrecondition, Operator, "{count} files were changed on the node, the first is {first}",
        hint "look at them; a release can also say to keep or to overwrite them";
    ReloadFailed = "RELOAD_FAILED", FailedPrecondition, Publisher, "the reload answered: {problem}";
    Reloaded = "RELOADED", Information, Nobody, "healthy; runs {digest}; the reload answered {answer}";
    LocalApplyForbidden = "LOCAL_APPLY_FORBIDDEN", PermissionDenied, Operator, "`{component}` takes no releases from a file: allow_local_apply is off";
    LocalApply = "LOCAL_APPLY", Information, Operator, "changed on the node itself: {message}";

    // Nodes.
    BaselineUnhealthy = "BASELINE_UNHEALTHY", FailedPrecondition, Operator, "was unhealthy before the change: {problem}",
        hint "mend the node first; a change on top would hide what is broken";
    Drifted = "DRIFTED", Information, Operator, "{actual} runs, {recorded} was recorded";
    LocalRollback = "LOCAL_ROLLBACK", Information, Operator, "rolled back on the node itself: {message}";
    HeldByOperator = "HELD_BY_OPERATOR", Information, Operator, "held by {actor}: {message}";
    ShimUnavailable = "SHIM_UNAVAILABLE", Unavailable, Operator, "the shim of `{component}` can't be reached: {problem}",
        hint "log in to the node: upfleet-agent status, upfleet-agent diagnostics";
    UnitUnreachable = "UNIT_UNREACHABLE", Unavailable, Operator, "systemd can't be asked about `{unit}`: {problem}",
        hint "see that the system bus and systemd answer on the node (busctl status org.freedesktop.systemd1); what runs is left alone";
    UnitNotFound = "UNIT_NOT_FOUND", FailedPrecondition, Operator, "systemd has no unit `{unit}`",
        hint "install the unit's file on the node, or correct run.unit of the component";
    UnitMasked = "UNIT_MASKED", FailedPrecondition, Operator, "`{unit}` is masked and can't be started",
        hint "systemctl unmask the unit on the node, if it is to run again";
    UnitNotPermitted = "UNIT_NOT_PERMITTED", PermissionDenied, Operator, "systemd does not let the agent {operation} `{unit}`: {problem}",
        hint "run the agent as root, or give its user a polkit rule for this unit: docs/how-to/systemd.md";
    UnitUnfit = "UNIT_UNFIT", FailedPrecondition, Operator, "`{unit}` can't run the component: {problem}",
        hint "mend the unit's file on the node, then systemctl daemon-reload; docs/how-to/systemd.md says what a unit needs";
    JournalDamaged = "JOURNAL_DAMAGED", DataLoss, Operator, "the journal of `{component}` was damaged and moved to {path}; what is installed was inspected by digest";
    StateDamaged = "STATE_DAMAGED", DataLoss, Operator, "{path} could not be used and was moved aside; the agent went on without it",
        hint "look at the disk; the alarm ends when the file is removed";
    IdentityDamaged = "IDENTITY_DAMAGED", DataLoss, Operator, "the node's identity can't be used: {problem}; components run on without the controller",
        hint "enroll the node again with a new token, then restart the agent";
    StateTooNew = "STATE_TOO_NEW", FailedPrecondition, Operator, "{path} has format {found}, this version reads up to {known}",
        hint "install the newer version again; where there never was one, the file is damaged: move it aside";
    AgentFormatUnreadable = "AGENT_FORMAT_UNREADABLE", FailedPrecondition, Operator, "version {writer} keeps {kind} in format {found}, version {reader} reads formats {from} to {to}",
        hint "go by a version in between, which reads both formats: docs/explanation/compatibility.md";
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for ReasonCode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(())
    }
}

impl<'de> Deserialize<'de> for ReasonCode {
    /// What a later version wrote down stays readable: a journal is worth more than one sentence in it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.parse().unwrap_or(Self::Other))
    }
}

/// A cause with its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The cause.
    pub code: ReasonCode,
    /// The values behind the sentence.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Since when it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When what it describes times out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

impl Reason {
    /// A cause without values yet.
    #[must_use]
    pub fn new(code: ReasonCode) -> Self {
        Self { code, metadata: BTreeMap::new(), since: None, deadline: None }
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Says since when.
    #[must_use]
    pub fn since(mut self, time: Time) -> Self {
        self.since = Some(time);
        self
    }

    /// Says until when.
    #[must_use]
    pub fn until(mut self, deadline: Option<Time>) -> Self {
        self.deadline = deadline;
        self
    }

    /// The sentence for a person: the template with its values; a missing value shows as `?`.
    #[must_use]
    pub fn message(&self) -> String {
        let mut text = String::new();
        let mut rest = self.code.template();
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let Some((key, tail)) = after.split_once('}') else { break };
            text.push_str(self.metadata.get(key).map_or("?", String::as_str));
            rest = tail;
        }
        text.push_str(rest);
        text
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Reason {}

#[cfg(test)]
mod tests;
