//! The store's format: migrations, in order, and which formats of later versions this one can do without.
//!
//! A migration that an older controller can do without (a new table, a new column that may be empty) says so in its own
//! SQL: `INSERT INTO meta (key, value) VALUES ('readable_from.<its number>', '<the oldest format that can>')`. The
//! controller before it goes on with such a store, and refuses every other one. Nothing is ever migrated down.

use std::path::Path;

use sqlx::{
    SqlitePool,
    migrate::{MigrateError, Migrator},
};

use super::{Result, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// All migrations of this version.
#[cfg(not(feature = "next"))]
pub(super) fn migrations() -> &'static Migrator {
    &MIGRATIONS
}

/// All migrations of this version and one of the next, for tests of two versions together.
#[cfg(feature = "next")]
pub(super) fn migrations() -> &'static Migrator {
    use sqlx::{
        SqlSafeStr as _, SqlStr,
        migrate::{Migration, MigrationType},
    };
    static ALL: std::sync::OnceLock<Migrator> = std::sync::OnceLock::new();
    ALL.get_or_init(|| {
        let mut all: Vec<Migration> = MIGRATIONS.iter().cloned().collect();
        let before = all.iter().map(|migration| migration.version).max().unwrap_or_default();
        let readable_from =
            if std::env::var_os("UPFLEET_NEXT_STORE_IS_MAJOR").is_some() { before + 1 } else { before };
        let sql: SqlStr = sqlx::AssertSqlSafe(format!(
            "ALTER TABLE node ADD COLUMN added_later TEXT; CREATE TABLE added_later (id TEXT PRIMARY KEY); \
             INSERT INTO meta (key, value) VALUES ('readable_from.{}', '{readable_from}')",
            before + 1
        ))
        .into_sql_str();
        all.push(Migration::new(before + 1, "later".into(), MigrationType::Simple, sql, false));
        Migrator::with_migrations(all)
    })
}

/// The newest migration that this version knows.
pub(crate) fn known_format() -> u32 {
    migrations().iter().map(|migration| migration.version).max().map_or(0, format)
}

fn format(version: i64) -> u32 {
    u32::try_from(version).unwrap_or(u32::MAX)
}

/// The number of the newest migration applied, 0 for an empty database.
pub(super) async fn applied(pool: &SqlitePool) -> Result<u32> {
    let table = "SELECT name FROM sqlite_master WHERE name = '_sqlx_migrations'";
    if sqlx::query(table).fetch_optional(pool).await?.is_none() {
        return Ok(0);
    }
    let newest = "SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations";
    Ok(format(sqlx::query_scalar::<_, i64>(newest).fetch_one(pool).await?))
}

/// The oldest format whose controllers can use a store of the later format `found`; `None` where it does not say.
async fn readable_from(pool: &SqlitePool, found: u32) -> Result<Option<u32>> {
    let select = "SELECT value FROM meta WHERE key = $1";
    let said = sqlx::query_scalar::<_, String>(select).bind(format!("readable_from.{found}"));
    Ok(said.fetch_optional(pool).await?.and_then(|said| said.parse().ok()))
}

/// Brings the store to this version's format, and sees to what every store has.
pub(super) async fn migrate(pool: &SqlitePool, path: &Path) -> Result<()> {
    let (found, known) = (applied(pool).await?, known_format());
    if found > known {
        if readable_from(pool, found).await?.is_none_or(|oldest| oldest > known) {
            return Err(StoreError::TooNew { path: path.display().to_string(), found, known });
        }
        tracing::warn!(found, known, "the store is of a later version, which says that this one can use it");
        return Ok(());
    }
    migrations().run(pool).await.map_err(|error| match error {
        MigrateError::Execute(error) => StoreError::from(error),
        error => StoreError::Internal { operation: "migrate", source: Box::new(error) },
    })?;
    let insert = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING";
    for (key, value) in [("epoch", "1".to_owned()), ("cluster_id", uuid::Uuid::new_v4().to_string())] {
        sqlx::query(insert).bind(key).bind(value).execute(pool).await?;
    }
    Ok(())
}
