CREATE TABLE IF NOT EXISTS instances (
  id INTEGER PRIMARY KEY,
  sop_uid TEXT NOT NULL UNIQUE,
  sop_class TEXT NOT NULL,
  study_uid TEXT NOT NULL,
  series_uid TEXT NOT NULL,
  digest TEXT NOT NULL,          -- SHA-256 of transfer syntax and data set
  bytes INTEGER NOT NULL,
  file TEXT,                     -- below the data folder; NULL once retention removed it
  source TEXT NOT NULL,
  received_at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS instances_of_study ON instances (study_uid);
CREATE INDEX IF NOT EXISTS instances_here ON instances (study_uid) WHERE file IS NOT NULL;

-- Same SOP Instance UID as an instance that is here, other content: kept, never used.
CREATE TABLE IF NOT EXISTS asides (
  id INTEGER PRIMARY KEY,
  sop_uid TEXT NOT NULL,
  study_uid TEXT NOT NULL,
  digest TEXT NOT NULL,
  file TEXT NOT NULL,
  source TEXT NOT NULL,
  received_at REAL NOT NULL,
  UNIQUE (sop_uid, digest)
) STRICT;
CREATE INDEX IF NOT EXISTS asides_of_study ON asides (study_uid);

-- One version of one study on its way.
CREATE TABLE IF NOT EXISTS jobs (
  id INTEGER PRIMARY KEY,
  study_uid TEXT NOT NULL,
  version INTEGER NOT NULL,
  state TEXT NOT NULL,
  reason TEXT,
  priority INTEGER NOT NULL,
  created_at REAL NOT NULL,
  changed_at REAL NOT NULL,
  last_image_at REAL NOT NULL,
  examined TEXT,                 -- what the headers said: whole, unknown, partial, missing or unfit; NULL after a new image
  because TEXT,                  -- and why
  inputs_digest TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  lease_owner TEXT,
  lease_until REAL,
  progress TEXT,
  UNIQUE (study_uid, version)
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, priority, created_at);

CREATE TABLE IF NOT EXISTS job_instances (
  job INTEGER NOT NULL REFERENCES jobs,
  instance INTEGER NOT NULL REFERENCES instances,
  PRIMARY KEY (job, instance)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_of_instance ON job_instances (instance, job);

-- Images whose files were removed and which a person does without: they are not missed any more.
CREATE TABLE IF NOT EXISTS given_up (
  instance INTEGER PRIMARY KEY REFERENCES instances
) STRICT;

-- What was made of a job.
CREATE TABLE IF NOT EXISTS objects (
  id INTEGER PRIMARY KEY,
  job INTEGER NOT NULL REFERENCES jobs,
  sop_class TEXT NOT NULL,
  sop_uid TEXT NOT NULL,
  digest TEXT NOT NULL,
  file TEXT,
  UNIQUE (job, sop_uid)
) STRICT;
CREATE INDEX IF NOT EXISTS objects_here ON objects (job) WHERE file IS NOT NULL;

-- One job's objects on their way to one destination: waiting, sent, committed, superseded, dead or discarded.
CREATE TABLE IF NOT EXISTS deliveries (
  id INTEGER PRIMARY KEY,
  job INTEGER NOT NULL REFERENCES jobs,
  destination TEXT NOT NULL,
  state TEXT NOT NULL,
  tries INTEGER NOT NULL DEFAULT 0,
  next_try_at REAL NOT NULL,
  reason TEXT,
  transaction_uid TEXT,          -- of the storage commitment that was asked for
  commit_until REAL,
  changed_at REAL NOT NULL,
  UNIQUE (job, destination)
) STRICT;
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (destination, state, next_try_at);

CREATE TABLE IF NOT EXISTS accepted (
  delivery INTEGER NOT NULL REFERENCES deliveries,
  object INTEGER NOT NULL REFERENCES objects,
  PRIMARY KEY (delivery, object)
) STRICT, WITHOUT ROWID;

-- Objects that exist once for each form of segmentation, and what each destination gets, from its first try on.
CREATE TABLE IF NOT EXISTS object_forms (
  object INTEGER PRIMARY KEY REFERENCES objects,
  form TEXT NOT NULL             -- binary or label map
) STRICT;
CREATE TABLE IF NOT EXISTS delivery_forms (
  delivery INTEGER PRIMARY KEY REFERENCES deliveries,
  form TEXT NOT NULL
) STRICT;

-- Append-only; each row's digest covers the one before it.
CREATE TABLE IF NOT EXISTS audit (
  number INTEGER PRIMARY KEY,
  at TEXT NOT NULL,
  event TEXT NOT NULL,
  actor TEXT NOT NULL,
  subject TEXT NOT NULL,
  outcome TEXT NOT NULL,
  previous TEXT NOT NULL,
  digest TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS audit_of_subject ON audit (subject);
CREATE INDEX IF NOT EXISTS audit_of_actor ON audit (actor, event);
CREATE TRIGGER IF NOT EXISTS audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_is_fixed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;

-- What a reader found wrong with a result. Rows outlive the result's files.
CREATE TABLE IF NOT EXISTS corrections (
  id INTEGER PRIMARY KEY,
  job INTEGER NOT NULL REFERENCES jobs,
  at REAL NOT NULL,
  kind TEXT NOT NULL,            -- structure, finding or other
  label TEXT,                    -- which structure or finding
  plane TEXT,                    -- NULL for all
  text TEXT NOT NULL,
  who TEXT NOT NULL,
  model TEXT                     -- digest of the weights, where there was a result
) STRICT;
CREATE INDEX IF NOT EXISTS corrections_of_job ON corrections (job);
