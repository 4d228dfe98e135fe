/**
 * The tracker in one SQLite file, shared by the processes of one machine: its format, and what each call reads and writes.
 * How transactions run, and what the library needs, stands in sqlite-file.ts.
 */

import type { Stats } from 'node:fs'
import { mkdir, open, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Durability, type Row, TrackerFile, type Value } from './sqlite-file.ts'
import { checkOwner, checkPages, MIGRATIONS, migrate } from './sqlite-format.ts'
import { makeOutbox, putIntoOutbox } from './sqlite-outbox.ts'
import { codeOf, problemOf } from './sqlite-problem.ts'
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
      const fence = await file.write('fast', () => begin(file, start, expectedFence))
      // In the background: what it cannot do the next cleaning does, and a broken file shows in the next write.
      if (++begins % BEGINS_PER_CLEANING === 0) void forgetOld(file, now).catch(() => {})
      return fence
    },
    holds: (uuid, fence) =>
      file.look(() => file.has('SELECT 1 FROM job WHERE uuid = ? AND fence = ? AND rested IS NULL', uuid, fence)),
    end: (uuid, fence, ending) =>
      file.write(durabilityOf(ending.state, ending.outbox), () => end(file, uuid, fence, ending, now())),
    openAttempts: (worker) =>
      file.look(() => {
        const open = file.all(`SELECT * FROM job WHERE ${IS_RUNNING} ORDER BY started, id`).map(attemptOf)
        return worker === undefined ? open : open.filter((attempt) => attempt.worker === worker)
      }),
    mark: (uuid, type, state, toOutbox) =>
      file.write(durabilityOf(state, toOutbox), () => mark(file, uuid, type, state, toOutbox, now())),
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
      openAttempts: file.all(`SELECT 1 FROM job WHERE ${IS_RUNNING}`).length,
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

/** With an open attempt; in words that the index takes. */
const IS_RUNNING = "state IN ('open', 'complete', 'failed') AND rested IS NULL"

function readJob(file: TrackerFile, uuid: string): TrackedJob | undefined {
  const [job] = file.all('SELECT * FROM job WHERE uuid = ?', uuid)
  if (job === undefined) return undefined
  const earlier = file.all('SELECT *, ? AS uuid FROM earlier WHERE job = ? ORDER BY fence', uuid, job.id ?? null)
  const attempts = (Number(job.fence) > 0 ? [...earlier, job] : earlier).map(attemptOf)
  return { uuid, type: String(job.type), state: job.state as JobState, fence: Number(job.fence), attempts }
}

const START = 'type, fence, ticket, tube, attempt, max_attempts, worker, run, started, deadline'

function begin(file: TrackerFile, start: AttemptStart, expectedFence: number): number | undefined {
  const { uuid } = start
  const fence = expectedFence + 1
  const values = [
    ...[start.type, fence, start.ticket, start.tube, start.attempt, start.maxAttempts],
    ...[start.worker, start.run, start.started, start.deadline],
  ]
  const asNew = `INSERT INTO job (uuid, state, ${START}) VALUES (?, 'open', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`
  if (expectedFence === 0 && file.run(asNew, [uuid, ...values]) > 0) return fence
  const [job] = file.all('SELECT id, state, fence, rested FROM job WHERE uuid = ?', uuid)
  if (job?.fence !== expectedFence || job.rested === null) return undefined
  const id = job.id ?? null
  if (job.state === 'open' && expectedFence > 0) {
    const columns = `${START}, ended, counts, record`
    file.run(`INSERT INTO earlier (job, ${columns}) SELECT id, ${columns} FROM job WHERE id = ?`, [id])
  }
  const forgotten = job.state === 'open' ? fence - ATTEMPTS_KEPT : expectedFence
  file.run('DELETE FROM earlier WHERE job = ? AND fence <= ?', [id, forgotten])
  const anew = "state = 'open', rested = NULL, ended = NULL, counts = 1, record = NULL"
  file.run(`UPDATE job SET ${anew}, (${START}) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ?`, [...values, id])
  return fence
}

function end(file: TrackerFile, uuid: string, fence: number, ending: AttemptEnd, now: number): boolean {
  const { state, ended, counts, record } = ending
  const text =
    'UPDATE job SET state = ?, rested = ?, ended = ?, counts = ?, record = ? WHERE uuid = ? AND fence = ? AND rested IS NULL'
  if (file.run(text, [state, now, ended, counts ? 1 : 0, record, uuid, fence]) === 0) return false
  if (ending.outbox) putIntoOutbox(file, uuid, now)
  return true
}

function mark(file: TrackerFile, uuid: string, type: string, state: JobState, toOutbox: boolean, now: number): void {
  // A job that has attempts is of their type. An open one stays open.
  const clash = `ON CONFLICT DO UPDATE SET state = excluded.state, rested = iif(rested IS NULL, NULL, excluded.rested),
    type = iif(fence = 0, excluded.type, type)`
  file.run(`INSERT INTO job (uuid, type, state, fence, rested) VALUES (?, ?, ?, 0, ?) ${clash}`, [
    uuid,
    type,
    state,
    now,
  ])
  if (toOutbox) putIntoOutbox(file, uuid, now)
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
    `SELECT id FROM job WHERE state = ? AND rested < ?
     AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.uuid = job.uuid) LIMIT ${FORGET_AT_ONCE}`,
    ...[state, before],
  )
  const ids = JSON.stringify(old.map(({ id }) => id))
  file.run('DELETE FROM earlier WHERE job IN (SELECT value FROM json_each(?))', [ids])
  file.run('DELETE FROM job WHERE id IN (SELECT value FROM json_each(?))', [ids])
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

function ignore(code: string): (error: unknown) => undefined {
  return (error) => {
    if (codeOf(error) !== code) throw error
  }
}
