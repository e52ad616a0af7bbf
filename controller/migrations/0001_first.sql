-- DDL common to SQLite and PostgreSQL: TEXT, BIGINT, BOOLEAN, BYTEA only. Columns for what queries need, the
-- rest a JSON document per row. Times are milliseconds since 1970. Lists are read in ascending `sort_key`.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE node (
    id TEXT PRIMARY KEY,
    revision BIGINT NOT NULL,
    last_seen BIGINT,
    session TEXT,
    doc TEXT NOT NULL
);

CREATE TABLE component (
    node TEXT NOT NULL REFERENCES node (id),
    component TEXT NOT NULL,
    revision BIGINT NOT NULL,
    doc TEXT NOT NULL,
    PRIMARY KEY (node, component)
);
CREATE INDEX component_by_name ON component (component, node);

CREATE TABLE desired (
    node TEXT NOT NULL REFERENCES node (id),
    component TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    number BIGINT NOT NULL,
    doc TEXT NOT NULL,
    PRIMARY KEY (node, component)
);
CREATE INDEX desired_by_component ON desired (component, node);

CREATE TABLE artifact (
    digest TEXT PRIMARY KEY,
    sort_key TEXT NOT NULL UNIQUE,
    doc TEXT NOT NULL
);

CREATE TABLE release (
    digest TEXT PRIMARY KEY,
    component TEXT NOT NULL,
    version TEXT NOT NULL,
    sort_key TEXT NOT NULL UNIQUE,
    manifest BYTEA NOT NULL,
    doc TEXT NOT NULL,
    UNIQUE (component, version)
);

CREATE TABLE release_artifact (
    artifact TEXT NOT NULL,
    release TEXT NOT NULL REFERENCES release (digest),
    PRIMARY KEY (artifact, release)
);

CREATE TABLE quarantine (
    digest TEXT PRIMARY KEY,
    doc TEXT NOT NULL
);

CREATE TABLE digest_failure (
    digest TEXT NOT NULL,
    node TEXT NOT NULL,
    doc TEXT NOT NULL,
    PRIMARY KEY (digest, node)
);

CREATE TABLE certificate (
    serial TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    expires BIGINT NOT NULL,
    refused BOOLEAN NOT NULL,
    sort_key TEXT NOT NULL UNIQUE,
    doc TEXT NOT NULL
);
CREATE INDEX certificate_by_subject ON certificate (kind, subject, sort_key);
CREATE INDEX certificate_by_refused ON certificate (refused, expires);

CREATE TABLE token (
    id TEXT PRIMARY KEY,
    used BOOLEAN NOT NULL,
    sort_key TEXT NOT NULL UNIQUE,
    doc TEXT NOT NULL
);

CREATE TABLE rollout (
    id TEXT PRIMARY KEY,
    component TEXT NOT NULL,
    state TEXT NOT NULL,
    terminal BOOLEAN NOT NULL,
    revision BIGINT NOT NULL,
    version BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    lease_holder TEXT,
    sort_key TEXT NOT NULL UNIQUE,
    plan TEXT NOT NULL,
    doc TEXT NOT NULL
);
CREATE INDEX rollout_by_terminal ON rollout (terminal, sort_key);
CREATE INDEX rollout_by_component ON rollout (component, sort_key);

CREATE TABLE node_upgrade (
    rollout TEXT NOT NULL REFERENCES rollout (id),
    node TEXT NOT NULL,
    upgrade_id TEXT UNIQUE,
    state TEXT NOT NULL,
    revision BIGINT NOT NULL,
    sort_key TEXT NOT NULL,
    doc TEXT NOT NULL,
    PRIMARY KEY (rollout, node)
);
CREATE INDEX node_upgrade_by_revision ON node_upgrade (rollout, revision);
CREATE INDEX node_upgrade_by_place ON node_upgrade (rollout, sort_key);

CREATE TABLE event (
    rollout TEXT NOT NULL REFERENCES rollout (id),
    revision BIGINT NOT NULL,
    time BIGINT NOT NULL,
    node TEXT,
    previous TEXT,
    doc TEXT NOT NULL,
    PRIMARY KEY (rollout, revision)
);

CREATE TABLE request (
    principal TEXT NOT NULL,
    id TEXT NOT NULL,
    method TEXT NOT NULL,
    body TEXT NOT NULL,
    response BYTEA NOT NULL,
    time BIGINT NOT NULL,
    PRIMARY KEY (principal, id)
);
CREATE INDEX request_by_time ON request (time);

CREATE TABLE audit (
    seq BIGINT PRIMARY KEY,
    time BIGINT NOT NULL,
    actor TEXT NOT NULL,
    request_id TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    before_doc TEXT NOT NULL,
    after_doc TEXT NOT NULL
);
CREATE INDEX audit_by_object ON audit (object, seq);
