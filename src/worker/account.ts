/**
 * What a job has behind it when it is reserved, and what follows: another attempt, a wait, or the end.
 *
 * Attempts are counted by the tracker. The documents are asked too: they hold what other hosts did that share a bucket,
 * and what was done before there was a tracker.
 */

import type { Outcome } from '../job/outcome.ts'
import type { AttemptRecord } from '../job/result.ts'
import { countedAttempts, type JobHistory } from '../publish.ts'
import type { Reservation } from '../queue/queue.ts'
import type { TrackedAttempt, TrackedJob } from '../tracker/tracker.ts'
import type { SlotContext } from './worker.ts'

/** An attempt may begin. */
export interface Turn {
  /** attempts that count, oldest first */
  readonly previous: readonly AttemptRecord[]
  /** number of the attempt that is to begin, from 1 on */
  readonly attempt: number
  readonly maxAttempts: number
  /** for Tracker.begin */
  readonly fence: number
  /** attempts that ended by a fault of this machine */
  readonly faults: number
}

export type Account =
  | { readonly kind: 'begin'; readonly turn: Turn }
  /** an attempt of the job is open elsewhere */
  | { readonly kind: 'busy'; readonly worker: string }
  | { readonly kind: 'exhausted'; readonly outcome: Outcome; readonly previous: readonly AttemptRecord[] }
  /** its failure was published; the worker died before it could bury the job */
  | { readonly kind: 'unburied'; readonly reason: string }

/** Of a job that the tracker does not know, or knows no attempt of, and that has no documents. */
export function firstTurn(maxAttempts: number): Turn {
  return { previous: [], attempt: 1, maxAttempts, fence: 0, faults: 0 }
}

/** A run and its publication may end this much later than its deadline: then its worker is frozen. */
const FROZEN_AFTER_MS = 30_000

/**
 * Looks at a job that is not complete.
 * @throws TrackerError
 */
export async function takeAccount(
  context: SlotContext,
  uuid: string,
  reservation: Reservation,
  history: JobHistory,
  maxAttempts: number,
): Promise<Account> {
  let tracked = await context.tracker.read(uuid)
  const open = openAttempt(tracked)
  if (open !== undefined) {
    if (!(await closeAbandoned(context, open))) return { kind: 'busy', worker: open.worker }
    tracked = await context.tracker.read(uuid)
    const still = openAttempt(tracked)
    if (still !== undefined) return { kind: 'busy', worker: still.worker }
  }
  const isUnburied = tracked?.state === 'failed' && isSameUnburied(tracked, reservation)
  if (isUnburied && history.status?.state === 'failed') {
    return { kind: 'unburied', reason: history.status.reason ?? 'it failed for good' }
  }
  const own = tracked?.state === 'open' || isUnburied ? (tracked?.attempts ?? []) : []
  const previous = mergeRecords(countedAttempts(history), own)
  const attempt = (previous.at(-1)?.attempt ?? 0) + 1
  if (attempt > maxAttempts || isUnburied) {
    return { kind: 'exhausted', outcome: { kind: 'exhausted', detail: whyExhausted(previous, maxAttempts) }, previous }
  }
  const faults = own.filter(({ record }) => readRecord(record)?.outcome === 'worker_fault').length
  return { kind: 'begin', turn: { previous, attempt, maxAttempts, fence: tracked?.fence ?? 0, faults } }
}

function openAttempt(tracked: TrackedJob | undefined): TrackedAttempt | undefined {
  return tracked?.attempts.find(({ ended }) => ended === undefined)
}

/**
 * The same ticket, reserved before, and never buried: nobody kicked it. A broker without a binlog gives tickets anew; that
 * the job was reserved before is forgotten by a restart, and then it begins anew.
 */
function isSameUnburied(tracked: TrackedJob, { ticket, buries, reserves }: Reservation): boolean {
  return tracked.attempts.at(-1)?.ticket === ticket && buries === 0 && reserves > 1
}

/** @returns true when the attempt is not open any more */
async function closeAbandoned(context: SlotContext, open: TrackedAttempt): Promise<boolean> {
  const { recovery } = context
  if (open.worker === context.workerId) {
    // Not in hand any more: its end could not be written then.
    await recovery.close(open, 'worker_fault', 'its end could not be written to the tracker')
    return true
  }
  const isOverdue = Date.now() > Date.parse(open.deadline) + FROZEN_AFTER_MS
  switch (await recovery.stateOf(open.worker)) {
    case 'dead':
      await recovery.recoverWorker(open.worker)
      return true
    case 'alive':
      if (!isOverdue) return false
      await recovery.endRun(open)
      await recovery.close(open, 'abandoned', 'its worker lives and does not answer')
      return true
    case 'unknown':
      if (!isOverdue) return false
      await recovery.close(open, 'abandoned', 'its worker is not known here and did not end it in time')
      return true
  }
}

/** By number. What was published of an attempt tells more than that its worker died thereafter. */
function mergeRecords(
  published: readonly AttemptRecord[],
  tracked: readonly TrackedAttempt[],
): readonly AttemptRecord[] {
  const records = new Map(published.map((record) => [record.attempt, record]))
  for (const { counts, record: text } of tracked) {
    const record = counts ? readRecord(text) : undefined
    if (record === undefined) continue
    const known = records.get(record.attempt)
    if (record.outcome === 'abandoned' && known !== undefined) continue
    records.set(record.attempt, record)
  }
  return [...records.values()].sort((a, b) => a.attempt - b.attempt)
}

function readRecord(text: string | undefined): AttemptRecord | undefined {
  return text === undefined ? undefined : (JSON.parse(text) as AttemptRecord)
}

function whyExhausted(previous: readonly AttemptRecord[], maxAttempts: number): string {
  const dead = previous.filter(({ outcome }) => outcome === 'abandoned').length
  const last = previous.at(-1)
  const poison = dead === 0 ? '' : `; in ${dead} of them the worker died: the job may be what kills it`
  return `all ${maxAttempts} attempts are spent${poison}; the last: ${last?.error ?? 'unknown'}`
}
