-- Patches: numbers of patch releases, what fleet-wide questions count, JVMs and history. As before: common to
-- SQLite and PostgreSQL.

ALTER TABLE release ADD COLUMN kind TEXT NOT NULL DEFAULT 'binary';
ALTER TABLE release ADD COLUMN patch_number BIGINT;
CREATE UNIQUE INDEX release_by_patch_number ON release (component, patch_number);

ALTER TABLE component ADD COLUMN drifted BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE component ADD COLUMN alarmed BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE component ADD COLUMN old_classes BIGINT NOT NULL DEFAULT 0;
UPDATE component SET drifted = TRUE WHERE doc LIKE '%"drift":{%';

CREATE TABLE jvm (
    node TEXT PRIMARY KEY REFERENCES node (id),
    doc TEXT NOT NULL
);

-- One row for each attempt of an upgrade that ended, and for each change on the node itself.
CREATE TABLE history (
    node TEXT NOT NULL,
    id TEXT NOT NULL,
    component TEXT NOT NULL,
    sort_key TEXT NOT NULL,
    doc TEXT NOT NULL,
    PRIMARY KEY (node, id)
);
CREATE INDEX history_by_time ON history (node, sort_key);
