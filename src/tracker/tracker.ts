/**
 * Memory of jobs and attempts, shared by all workers of one installation: the contract that every tracker driver
 * fulfils. It outlives workers and brokers; what it holds can be told anew from the status documents, but for the
 * outbox and attempts that are open.
 *
 * Fencing: every attempt of a job gets a number, the fence, that only grows. Who reads a job, decides, and begins an
 * attempt names the fence that it saw; of two that decide at the same time one is refused. Who publishes asks `holds`
 * right before the commit.
 */

import { fileURLToPath, pathToFileURL } from 'node:url'

export interface AttemptStart {
  readonly uuid: string
  readonly type: string
  readonly ticket: string
  readonly tube: string
  /** 1 for the first that counts */
  readonly attempt: number
  readonly maxAttempts: number
  /** id of the worker's own folder; who it is and whether it lives is told by others */
  readonly worker: string
  /** name of the run's directory in that folder */
  readonly run: string
  /** ISO 8601 */
  readonly started: string
  /** ISO 8601: when the run must be over */
  readonly deadline: string
}

export interface TrackedAttempt extends AttemptStart {
  /** grows with every attempt of a job */
  readonly fence: number
  /** ISO 8601; undefined while it is open */
  readonly ended: string | undefined
  /** spends one of the job's attempts; true while it is open */
  readonly counts: boolean
  /** JSON text as given to `end`: the attempt's record in the status document */
  readonly record: string | undefined
}

/** `open` is any job that is not final: it waits, runs or will be tried again. */
export type JobState = 'open' | 'complete' | 'failed'

export interface TrackedJob {
  readonly uuid: string
  readonly type: string
  readonly state: JobState
  /** of the newest attempt; 0 when there is none */
  readonly fence: number
  /** since the job began, or began anew; oldest first; the newest 100 at most */
  readonly attempts: readonly TrackedAttempt[]
}

export interface AttemptEnd {
  /** ISO 8601 */
  readonly ended: string
  readonly counts: boolean
  readonly record: string
  /** what the job is now */
  readonly state: JobState
  /** also puts the job into the outbox, in the same transaction */
  readonly outbox: boolean
}

/**
 * Every method throws TrackerError. What makes a job fail for good or touches the outbox is durable when it settles; the rest
 * outlives the process. A power failure may undo the end of a complete job: its result, durable before, tells that it is.
 */
export interface Tracker {
  read(uuid: string): Promise<TrackedJob | undefined>
  /**
   * Writes an attempt before its process starts; its fence. Undefined when the job moved on since it was read: its
   * fence is not `expectedFence` (0 for an unknown job), or an attempt is open. A job that is complete or failed begins
   * anew (it was kicked, or put again by hand): earlier attempts no longer show.
   */
  begin(start: AttemptStart, expectedFence: number): Promise<number | undefined>
  /** True while that attempt is open and the newest of its job. */
  holds(uuid: string, fence: number): Promise<boolean>
  /** Ends an open attempt. False when it is not open any more or not the newest: nothing is written. */
  end(uuid: string, fence: number, end: AttemptEnd): Promise<boolean>
  /** All open attempts of a worker, or of all workers; the oldest first. */
  openAttempts(worker?: string): Promise<TrackedAttempt[]>
  /** Says what a job is without an attempt, for instance when its result was found on disk. An open attempt stays open. */
  mark(uuid: string, type: string, state: JobState, outbox: boolean): Promise<void>
  readonly outbox: Outbox
  close(): Promise<void>
}

export interface OutboxEntry {
  readonly uuid: string
  /** which `put` this is; never used twice */
  readonly version: number
  /** times that copying failed since it was put */
  readonly tries: number
  /** ISO 8601: when it was put first */
  readonly since: string
  /** why the last try failed */
  readonly error: string | undefined
}

export type OutboxOutcome = { readonly done: true } | { readonly retryInSeconds: number; readonly error: string }

/** Jobs whose documents are durable here and are still to be copied to S3. One entry a job; first in, first out. */
export interface Outbox {
  /** Again while it is there: it keeps its place and delay, and a take under way does not settle the newer put. */
  put(uuid: string): Promise<void>
  /** The oldest entry that is due and that nobody has taken, or undefined. The lease lapses by itself. */
  take(owner: string, leaseSeconds: number): Promise<OutboxEntry | undefined>
  /** Done removes it, unless it was put again; else it is due again later. Whose lease was taken over settles nothing. */
  settle(entry: OutboxEntry, owner: string, outcome: OutboxOutcome): Promise<void>
  /** Gives back all that an owner has taken, who stops or died. */
  giveBack(owner: string): Promise<void>
  has(uuid: string): Promise<boolean>
  state(): Promise<OutboxState>
}

export interface OutboxState {
  readonly length: number
  /** ISO 8601; undefined when empty */
  readonly oldest: string | undefined
  /** 0 when one is due now; undefined when all are taken or there is none */
  readonly dueInSeconds: number | undefined
  /** who has taken entries */
  readonly owners: readonly string[]
}

export type TrackerErrorCode =
  /** the file is damaged, or no database */
  | 'corrupt'
  /** not there and cannot be made, or may not be written */
  | 'denied'
  /** another process held it for too long; it may be free later */
  | 'busy'
  | 'full'
  /** written by a newer version of this program */
  | 'newer'
  | 'failed'

/** The tracker cannot do its part; the job is not at fault. */
export class TrackerError extends Error {
  readonly code: TrackerErrorCode

  constructor(code: TrackerErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.name = 'TrackerError'
    this.code = code
  }
}

/** The URL of a tracker in a file, whatever characters the path has. */
export function sqliteUrl(path: string): string {
  return pathToFileURL(path).href.replace(/^file:/, 'sqlite:')
}

/** A tracker as it is found. */
export interface TrackerDescription {
  /** what the next worker that starts does to it */
  readonly isToBeMigrated: boolean
  readonly openAttempts: number
  /** jobs in the outbox */
  readonly copies: number
}

/**
 * Opens a tracker and tries that it can be written; makes the file, and its folder if that one's parent exists.
 * @param url `sqlite:///absolute/path/tracker.db`, as `sqliteUrl` makes it
 * @throws TrackerError
 */
export async function openTracker(url: string): Promise<Tracker> {
  const path = pathOf(url)
  const { openSqlite } = await loadDriver()
  return openSqlite(path)
}

/**
 * Looks whether a tracker could be opened, and changes nothing. Undefined when there is none yet.
 * @param url as of `openTracker`
 * @throws TrackerError as `openTracker`
 */
export async function describeTracker(url: string): Promise<TrackerDescription | undefined> {
  const path = pathOf(url)
  const { describeSqlite } = await loadDriver()
  return describeSqlite(path)
}

function pathOf(url: string): string {
  if (!/^sqlite:\/\/\/./.test(url)) {
    throw new TrackerError('failed', `no tracker driver for ${url} - use sqlite:///absolute/path/tracker.db`)
  }
  return fileURLToPath(url.replace(/^sqlite:/, 'file:'))
}

function loadDriver(): Promise<typeof import('./sqlite.ts')> {
  return import('./sqlite.ts').catch((cause: unknown) => {
    const here = `${process.platform} ${process.arch}`
    const remedy = 'install again on this machine, with optional dependencies (npm ci --include=optional)'
    throw new TrackerError('failed', `the tracker's database library does not load on ${here}: ${remedy}`, cause)
  })
}
