/**
 * The tracker in one SQLite file, shared by the processes of one machine: its format, and what each call reads and writes.
 * How transactions run, and what the library needs, stands in sqlite-file.ts.
 */

import type { Stats } from 'node:fs'
import { mkdir, open, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Durability, type Row, TrackerFile, type Value } from './sqlite-file.ts'
import { makeOutbox, putIntoOutbox } from './sqlite-outbox.ts'
import { codeOf, damage, problemOf, STARTING_ANEW } from './sqlite-problem.ts'
import {
  type AttemptEnd,
  type AttemptStart,
  type JobState,
  type TrackedAttempt,
  type TrackedJob,
  type Tracker,
  type TrackerDescription,
  TrackerError,
} from './tracker.ts'

/** "qwkr": tells our files from any other SQLite file. */
const APPLICATION_ID = 0x71776b72
const ATTEMPTS_KEPT = 100
const DAY_MS = 86_400_000
/** Jobs that nothing happened to for so long are forgotten. An open one was deleted from its tube by hand. */
const KEEP_MS: Readonly<Record<JobState, number>> = {
  complete: 30 * DAY_MS,
  failed: 30 * DAY_MS,
  open: 365 * DAY_MS,
}
/** Jobs forgotten in one transaction: about 10 ms. */
const FORGET_AT_ONCE = 200
const BEGINS_PER_CLEANING = 1000
/** The write-ahead log is cut to this after a checkpoint: it starts anew at 1000 pages, about 4 MB, when no reader hinders. */
const WAL_BYTES = 8_388_608

/**
 * The format, step by step; `user_version` is the number of steps that a file has seen. To change the format append one
 * step and touch none that was released: every file goes through the steps it lacks, in one transaction, and programs
 * that know fewer steps refuse it from then on. Times are milliseconds since 1970 where the driver computes with them.
 */
const MIGRATIONS: readonly string[] = [
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
]

export interface SqliteOptions {
  /** how long a call waits for another process; 10 s */
  readonly patienceMs?: number
  /** milliseconds since 1970 */
  readonly now?: () => number
}

/** @param path absolute @throws TrackerError */
export async function openSqlite(path: string, options: SqliteOptions = {}): Promise<Tracker> {
  const { patienceMs = 10_000, now = Date.now } = options
  await preparePlace(path)
  const file = await openFile(path, patienceMs, now)
  let begins = 0
  return {
    async read(uuid) {
      // Most jobs are new.
      const isKnown = await file.look(() => file.has('SELECT 1 FROM job WHERE uuid = ?', uuid))
      return isKnown ? file.read(() => readJob(file, uuid)) : undefined
    },
    async begin(start, expectedFence) {
      const fence = await file.write('fast', () => begin(file, start, expectedFence, now()))
      // In the background: what it cannot do the next cleaning does, and a broken file shows in the next write.
      if (++begins % BEGINS_PER_CLEANING === 0) void forgetOld(file, now).catch(() => {})
      return fence
    },
    holds: (uuid, fence) =>
      file.look(() => {
        const newest = 'SELECT fence FROM job WHERE uuid = ?1'
        const text = `SELECT 1 FROM attempt WHERE uuid = ?1 AND fence = ?2 AND ended IS NULL AND fence = (${newest})`
        return file.has(text, uuid, fence)
      }),
    end: (uuid, fence, ending) =>
      file.write(durabilityOf(ending.state, ending.outbox), () => end(file, uuid, fence, ending, now())),
    openAttempts: (worker) =>
      file.look(() =>
        (worker === undefined
          ? file.all('SELECT * FROM attempt WHERE ended IS NULL ORDER BY id')
          : file.all('SELECT * FROM attempt WHERE worker = ? AND ended IS NULL ORDER BY id', worker)
        ).map(attemptOf),
      ),
    mark: (uuid, type, state, toOutbox) =>
      file.write(durabilityOf(state, toOutbox), () => {
        const clash =
          'ON CONFLICT DO UPDATE SET type = excluded.type, state = excluded.state, changed = excluded.changed'
        file.run(`INSERT INTO job (uuid, type, state, fence, changed) VALUES (?, ?, ?, 0, ?) ${clash}`, [
          ...[uuid, type, state, now()],
        ])
        if (toOutbox) putIntoOutbox(file, uuid, now())
      }),
    outbox: makeOutbox(file, now),
    close: () => file.close(),
  }
}

/** That a job is complete its result tells, which is durable before: nothing is lost with the row. */
function durabilityOf(state: JobState, toOutbox: boolean): Durability {
  return toOutbox || state === 'failed' ? 'durable' : 'fast'
}

/** How long a look waits for another process. */
const LOOK_PATIENCE_MS = 5_000

/** @param path absolute @throws TrackerError */
export async function describeSqlite(path: string): Promise<TrackerDescription | undefined> {
  const there = await stat(path).catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return undefined
    throw problemOf(error, path, 0)
  })
  if (there === undefined) return undefined
  if (!there.isFile()) throw notAFile(path, there)
  const file = new TrackerFile(path, LOOK_PATIENCE_MS)
  try {
    const version = await file.read(() => checkOwner(file))
    await file.read(() => checkPages(file))
    // The right to write, given back: a COMMIT would begin an empty file.
    await file.retry(performance.now() + LOOK_PATIENCE_MS, () => {
      file.exec('BEGIN IMMEDIATE')
      file.exec('ROLLBACK')
    })
    const isToBeMigrated = version < MIGRATIONS.length
    if (isToBeMigrated) return { isToBeMigrated, openAttempts: 0, copies: 0 }
    return await file.read(() => ({
      isToBeMigrated,
      openAttempts: file.all('SELECT 1 FROM attempt WHERE ended IS NULL').length,
      copies: file.all('SELECT 1 FROM outbox').length,
    }))
  } catch (error) {
    throw file.problem(error)
  } finally {
    file.release()
  }
}

function notAFile(path: string, stats: Stats): TrackerError {
  const kind = stats.isDirectory() ? 'a directory' : 'no regular file'
  return new TrackerError('denied', `the tracker ${path} is ${kind}, expected a file: move it away, and start again`)
}

function readJob(file: TrackerFile, uuid: string): TrackedJob | undefined {
  const [job] = file.all('SELECT * FROM job WHERE uuid = ?', uuid)
  if (job === undefined) return undefined
  const attempts = file.all('SELECT * FROM attempt WHERE uuid = ? ORDER BY fence', uuid).map(attemptOf)
  return { uuid, type: String(job.type), state: job.state as JobState, fence: Number(job.fence), attempts }
}

function begin(file: TrackerFile, start: AttemptStart, expectedFence: number, now: number): number | undefined {
  const { uuid } = start
  const [job] = file.all('SELECT state, fence FROM job WHERE uuid = ?', uuid)
  if (Number(job?.fence ?? 0) !== expectedFence) return undefined
  if (file.all('SELECT 1 FROM attempt WHERE uuid = ? AND ended IS NULL', uuid).length > 0) return undefined
  const fence = expectedFence + 1
  const anew = job !== undefined && job.state !== 'open'
  const clash =
    "ON CONFLICT DO UPDATE SET type = excluded.type, state = 'open', fence = excluded.fence, changed = excluded.changed"
  const values = [uuid, start.type, fence, now]
  file.run(`INSERT INTO job (uuid, type, state, fence, changed) VALUES (?, ?, 'open', ?, ?) ${clash}`, values)
  file.run('DELETE FROM attempt WHERE uuid = ? AND fence <= ?', [uuid, anew ? expectedFence : fence - ATTEMPTS_KEPT])
  file.run(
    `INSERT INTO attempt (uuid, fence, type, ticket, tube, attempt, max_attempts, worker, run, started, deadline)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    [
      ...[uuid, fence, start.type, start.ticket, start.tube, start.attempt, start.maxAttempts],
      ...[start.worker, start.run, start.started, start.deadline],
    ],
  )
  return fence
}

function end(file: TrackerFile, uuid: string, fence: number, ending: AttemptEnd, now: number): boolean {
  const [job] = file.all('SELECT fence FROM job WHERE uuid = ?', uuid)
  if (job?.fence !== fence) return false
  const ended = file.all(
    'UPDATE attempt SET ended = ?, counts = ?, record = ? WHERE uuid = ? AND fence = ? AND ended IS NULL RETURNING id',
    ...[ending.ended, ending.counts ? 1 : 0, ending.record, uuid, fence],
  )
  if (ended.length === 0) return false
  file.run('UPDATE job SET state = ?, changed = ? WHERE uuid = ?', [ending.state, now, uuid])
  if (ending.outbox) putIntoOutbox(file, uuid, now)
  return true
}

function attemptOf(row: Row): TrackedAttempt {
  const text = (value: Value | undefined) => (value === null || value === undefined ? undefined : String(value))
  return {
    uuid: String(row.uuid),
    type: String(row.type),
    ticket: String(row.ticket),
    tube: String(row.tube),
    attempt: Number(row.attempt),
    maxAttempts: Number(row.max_attempts),
    worker: String(row.worker),
    run: String(row.run),
    started: String(row.started),
    deadline: String(row.deadline),
    fence: Number(row.fence),
    ended: text(row.ended),
    counts: row.counts === 1,
    record: text(row.record),
  }
}

/** Forgets old jobs, a few at a time, and empties the write-ahead log. */
async function forgetOld(file: TrackerFile, now: () => number): Promise<void> {
  for (const state of ['complete', 'failed', 'open'] as const) {
    const before = now() - KEEP_MS[state]
    while (await file.write('fast', () => forget(file, state, before))) await sleep(1)
  }
  file.checkpoint()
}

/** True when there may be more. */
function forget(file: TrackerFile, state: JobState, before: number): boolean {
  const old = file.all(
    `SELECT uuid FROM job WHERE state = ? AND changed < ?
     AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.uuid = job.uuid)
     AND NOT EXISTS (SELECT 1 FROM attempt WHERE attempt.uuid = job.uuid AND ended IS NULL) LIMIT ${FORGET_AT_ONCE}`,
    ...[state, before],
  )
  const uuids = JSON.stringify(old.map(({ uuid }) => uuid))
  file.run('DELETE FROM attempt WHERE uuid IN (SELECT value FROM json_each(?))', [uuids])
  file.run('DELETE FROM job WHERE uuid IN (SELECT value FROM json_each(?))', [uuids])
  return old.length === FORGET_AT_ONCE
}

/** Makes the folder and an empty file where they are missing, durable, for this user only. */
async function preparePlace(path: string): Promise<void> {
  const folder = dirname(path)
  try {
    // Never more than one folder: the disk that should be here may not be mounted.
    await mkdir(folder, { mode: 0o700 }).catch(ignore('EEXIST'))
    const there = await stat(path).catch(ignore('ENOENT'))
    if (there?.isFile() === false) throw notAFile(path, there)
    if (there !== undefined) return
    const file = await open(path, 'wx', 0o600).catch(ignore('EEXIST'))
    await file?.close()
    const directory = await open(folder, 'r')
    await directory.sync().finally(() => directory.close())
  } catch (error) {
    if (error instanceof TrackerError || codeOf(error) !== 'ENOENT') throw problemOf(error, path, 0)
    const what = `the tracker ${path} cannot be made, for ${dirname(folder)} does not exist`
    throw new TrackerError('denied', `${what}: mount its disk, or make that directory`, error)
  }
}

async function openFile(path: string, patienceMs: number, now: () => number): Promise<TrackerFile> {
  const file = new TrackerFile(path, patienceMs)
  const patiently = <T>(work: () => T) => file.retry(performance.now() + patienceMs, work)
  try {
    // Before anything is written: a file of somebody else stays as it is.
    await file.read(() => checkOwner(file))
    const [mode] = await patiently(() => file.all('PRAGMA journal_mode = WAL'))
    if (mode?.journal_mode !== 'wal') {
      const what = `the tracker ${path} needs a disk that processes can share memory on, and this one is none`
      throw new TrackerError('failed', `${what}: put it on a local disk`)
    }
    file.exec(`PRAGMA journal_size_limit = ${WAL_BYTES}`)
    await file.read(() => checkPages(file))
    await file.write('durable', () => migrate(file))
    await file.write('fast', () => file.run("UPDATE counter SET value = value + 1 WHERE name = 'probe'", []))
    await forgetOld(file, now)
    return file
  } catch (error) {
    file.release()
    throw file.problem(error)
  }
}

/**
 * The format of the file, 0 for a new one. Asked inside a transaction: another process may be migrating it.
 * @throws TrackerError when the file is not ours, or newer than this program
 */
function checkOwner(file: TrackerFile): number {
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
function checkPages(file: TrackerFile): void {
  const found = Object.values(file.all('PRAGMA quick_check(1)')[0] ?? {})[0]
  if (found !== 'ok') throw new TrackerError('corrupt', damage(file.path, String(found)))
}

function migrate(file: TrackerFile): void {
  // Asked again: of several that open a new file at once, one finds it empty.
  const version = checkOwner(file)
  if (version === MIGRATIONS.length) return
  for (const step of MIGRATIONS.slice(version)) file.exec(step)
  file.exec(`PRAGMA application_id = ${APPLICATION_ID}`)
  file.exec(`PRAGMA user_version = ${MIGRATIONS.length}`)
}

function ignore(code: string): (error: unknown) => undefined {
  return (error) => {
    if (codeOf(error) !== code) throw error
  }
}
