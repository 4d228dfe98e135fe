/** The format of a tracker's SQLite file. */

import type { TrackerFile } from './sqlite-file.ts'
import { damage, STARTING_ANEW } from './sqlite-problem.ts'
import { TrackerError } from './tracker.ts'

/** "qwkr": tells our files from any other SQLite file. */
const APPLICATION_ID = 0x71776b72

/**
 * The format, step by step; `user_version` is the number of steps that a file has seen. To change the format append one
 * step and touch none that was released: every file goes through the steps it lacks, in one transaction, and programs
 * that know fewer steps refuse it from then on. Times are milliseconds since 1970 where the driver computes with them.
 */
export const MIGRATIONS: readonly string[] = [
  `CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
   INSERT INTO counter VALUES ('probe', 0), ('put', 0);
   CREATE TABLE job (
     uuid TEXT PRIMARY KEY,
     type TEXT NOT NULL,
     state TEXT NOT NULL CHECK (state IN ('open', 'complete', 'failed')),
     fence INTEGER NOT NULL,
     changed INTEGER NOT NULL
   ) STRICT, WITHOUT ROWID;
   CREATE INDEX job_by_state ON job (state, changed);
   CREATE TABLE attempt (
     id INTEGER PRIMARY KEY,
     uuid TEXT NOT NULL,
     fence INTEGER NOT NULL,
     type TEXT NOT NULL,
     ticket TEXT NOT NULL,
     tube TEXT NOT NULL,
     attempt INTEGER NOT NULL,
     max_attempts INTEGER NOT NULL,
     worker TEXT NOT NULL,
     run TEXT NOT NULL,
     started TEXT NOT NULL,
     deadline TEXT NOT NULL,
     ended TEXT,
     counts INTEGER NOT NULL DEFAULT 1,
     record TEXT,
     UNIQUE (uuid, fence)
   ) STRICT;
   CREATE UNIQUE INDEX attempt_open ON attempt (uuid) WHERE ended IS NULL;
   CREATE INDEX attempt_open_by_worker ON attempt (worker) WHERE ended IS NULL;
   CREATE TABLE outbox (
     place INTEGER PRIMARY KEY AUTOINCREMENT,
     uuid TEXT NOT NULL UNIQUE,
     version INTEGER NOT NULL,
     since TEXT NOT NULL,
     tries INTEGER NOT NULL DEFAULT 0,
     error TEXT,
     owner TEXT,
     taken INTEGER, -- the version that the owner has
     free INTEGER NOT NULL, -- not to be taken before: the end of a delay, or of a lease when it has an owner
     noted INTEGER NOT NULL -- when that was written: later than now says that the clock was put back
   ) STRICT;
   CREATE INDEX outbox_by_place ON outbox (place, free, noted, owner); -- narrow: S3 may be away for a week`,
  `CREATE TABLE known (
     id INTEGER PRIMARY KEY,
     uuid TEXT NOT NULL UNIQUE,
     type TEXT NOT NULL,
     state TEXT NOT NULL CHECK (state IN ('open', 'complete', 'failed')),
     rested INTEGER, -- when something happened to it last; NULL while an attempt is open
     fence INTEGER NOT NULL, -- of the newest attempt, which is all that follows
     ticket TEXT,
     tube TEXT,
     attempt INTEGER,
     max_attempts INTEGER,
     worker TEXT,
     run TEXT,
     started TEXT,
     deadline TEXT,
     ended TEXT,
     counts INTEGER NOT NULL DEFAULT 1,
     record TEXT
   ) STRICT;
   INSERT INTO known SELECT NULL, job.uuid, coalesce(newest.type, job.type), state,
     CASE WHEN newest.id IS NULL OR ended IS NOT NULL THEN changed END, job.fence, ticket, tube, attempt, max_attempts,
     worker, run, started, deadline, ended, coalesce(counts, 1), record
     FROM job LEFT JOIN attempt AS newest USING (uuid, fence) ORDER BY changed;
   CREATE TABLE earlier (
     job INTEGER NOT NULL,
     fence INTEGER NOT NULL,
     type TEXT NOT NULL,
     ticket TEXT NOT NULL,
     tube TEXT NOT NULL,
     attempt INTEGER NOT NULL,
     max_attempts INTEGER NOT NULL,
     worker TEXT NOT NULL,
     run TEXT NOT NULL,
     started TEXT NOT NULL,
     deadline TEXT NOT NULL,
     ended TEXT NOT NULL,
     counts INTEGER NOT NULL,
     record TEXT,
     PRIMARY KEY (job, fence)
   ) STRICT, WITHOUT ROWID;
   INSERT INTO earlier SELECT known.id, attempt.fence, attempt.type, attempt.ticket, attempt.tube, attempt.attempt,
     attempt.max_attempts, attempt.worker, attempt.run, attempt.started, attempt.deadline, attempt.ended, attempt.counts,
     attempt.record FROM attempt JOIN known USING (uuid) WHERE attempt.fence < known.fence;
   DROP TABLE attempt;
   DROP TABLE job;
   ALTER TABLE known RENAME TO job;
   CREATE INDEX job_by_rest ON job (state, rested);`,
]

/**
 * The format of the file, 0 for a new one. Asked inside a transaction: another process may be migrating it.
 * @throws TrackerError when the file is not ours, or newer than this program
 */
export function checkOwner(file: TrackerFile): number {
  const application = Number(file.all('PRAGMA application_id')[0]?.application_id)
  const version = Number(file.all('PRAGMA user_version')[0]?.user_version)
  const empty = version === 0 && file.all('SELECT 1 FROM sqlite_master LIMIT 1').length === 0
  if (application !== APPLICATION_ID && !(application === 0 && empty)) {
    const what = `the tracker ${file.path} is a database of another program (application_id ${application})`
    throw new TrackerError('failed', `${what}, and stays untouched: move it away, and start again`)
  }
  if (version > MIGRATIONS.length) {
    const what = `the tracker ${file.path} has format ${version}, this program knows formats up to ${MIGRATIONS.length}`
    throw new TrackerError('newer', `${what}: install the version that wrote it. ${STARTING_ANEW}`)
  }
  return version
}

/** @throws TrackerError `corrupt` */
export function checkPages(file: TrackerFile): void {
  const found = Object.values(file.all('PRAGMA quick_check(1)')[0] ?? {})[0]
  if (found !== 'ok') throw new TrackerError('corrupt', damage(file.path, String(found)))
}

export function migrate(file: TrackerFile): void {
  // Asked again: of several that open a new file at once, one finds it empty.
  const version = checkOwner(file)
  if (version === MIGRATIONS.length) return
  for (const step of MIGRATIONS.slice(version)) file.exec(step)
  file.exec(`PRAGMA application_id = ${APPLICATION_ID}`)
  file.exec(`PRAGMA user_version = ${MIGRATIONS.length}`)
}
