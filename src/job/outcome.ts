/** What a run came to, and what the broker is told of it. Pure tables: nothing here acts. */

/** How a process tree was ended, and what was left. It stands in the status document as it is. */
export interface KillReceipt {
  /** Signals in the order in which they were sent, with milliseconds since the first and the processes they went to. */
  readonly signals: readonly { readonly signal: string; readonly at_ms: number; readonly processes: number }[]
  /** Milliseconds from the first signal to the check that found nothing */
  readonly duration_ms: number
  /** Process ids that were still alive at the last check */
  readonly survivors: readonly number[]
  /** `proc` where every process of the run is found by its mark; `tree` where only descendants are. */
  readonly method: 'proc' | 'tree'
}

/** What an attempt used; null where it is not known: it was over before a look, or there is no /proc. */
export interface Usage {
  readonly wall_seconds: number
  /** of all processes, user and system */
  readonly cpu_seconds: number | null
  /** `cgroup`: the most that the run's control group held, with its files in memory; else the highest sum of what was resident of all processes; pages that processes share count for each */
  readonly peak_memory_bytes: number | null
  /**
   * `cgroup`: counted by the kernel. `cgroup_cpu`: only the processor time is, the rest is sampled. `sampled` from /proc:
   * what lies between the last sample and the end, up to a second, is not in it
   */
  readonly method: 'cgroup' | 'cgroup_cpu' | 'sampled'
}

export type Outcome =
  /** exit 0 with an acceptable result */
  | { readonly kind: 'success'; readonly exitCode: 0 }
  /** any exit that is neither success nor one of the special codes; `limits` tells those in force, if any */
  | { readonly kind: 'failed'; readonly exitCode: number; readonly limits?: string }
  /** exit 65, or one of the manifest's permanent_exits: no retry can help */
  | { readonly kind: 'rejected'; readonly exitCode: number }
  /** a warm process answered with an error, and lives on; `limits` as above */
  | { readonly kind: 'failed'; readonly exitCode: null; readonly error: string; readonly limits?: string }
  /** the same, and it says that no retry can help */
  | { readonly kind: 'rejected'; readonly exitCode: null; readonly error: string }
  /** exit 75: the algorithm asks for another time */
  | { readonly kind: 'deferred'; readonly exitCode: 75 }
  /** died by a signal that was not ours; `limits` as above */
  | { readonly kind: 'signalled'; readonly signal: string; readonly limits?: string }
  /** ended by us at TTR + GRACE_TIME */
  | { readonly kind: 'timed_out'; readonly limitSeconds: number }
  /** ended by us because it wrote more than it may */
  | { readonly kind: 'output_exceeded'; readonly detail: string }
  /** ended by the kernel at one of the manifest's limits, or failed after it was refused a process */
  | { readonly kind: 'limit_exceeded'; readonly detail: string }
  /** exit 0, but stdout is not what the manifest's `output` demands */
  | { readonly kind: 'output_invalid'; readonly detail: string }
  /** the program could not be started */
  | { readonly kind: 'not_started'; readonly detail: string }
  /** its worker died or froze in the middle; whoever found that out says so */
  | { readonly kind: 'abandoned'; readonly detail: string }
  /** no attempt is left: the worker that should have buried the job died, or every attempt killed its worker */
  | { readonly kind: 'exhausted'; readonly detail: string }
  /** ended by us because the worker stops: spends no attempt */
  | { readonly kind: 'interrupted' }
  /** the reservation is no longer ours: the output is discarded and nobody is told anything */
  | { readonly kind: 'lost'; readonly detail: string }
  /** bytes that are no work package */
  | { readonly kind: 'malformed'; readonly detail: string }
  /** no algorithm of that name can be run here */
  | { readonly kind: 'unknown_type'; readonly detail: string }
  /** a machine fault of ours (disk, descriptors): spends no attempt */
  | { readonly kind: 'worker_fault'; readonly detail: string }

export type Settlement =
  | { readonly action: 'delete' }
  | { readonly action: 'release'; readonly delaySeconds: number }
  | { readonly action: 'bury'; readonly reason: string }
  /** the reservation is not ours to settle */
  | { readonly action: 'none' }

export interface RetryRules {
  readonly retryDelaySeconds: number
  readonly retryDelayMaxSeconds: number
}

/** Seconds after which a job that met a machine fault of ours is tried again; doubled each time it meets one again. */
const FAULT_DELAY_SECONDS = 5
const FAULT_DELAY_MAX_SECONDS = 300
const JITTER = 0.1

/**
 * Decides what the broker is told.
 * @param attempt 1 for the first try; interrupted and faulty tries are not counted. For a fault: how many the job met
 * @param random a number in [0, 1) for the jitter
 */
export function settle(
  outcome: Outcome,
  attempt: number,
  maxAttempts: number,
  rules: RetryRules,
  random: number,
): Settlement {
  switch (outcome.kind) {
    case 'success':
      return { action: 'delete' }
    case 'lost':
      return { action: 'none' }
    case 'interrupted':
      return { action: 'release', delaySeconds: 0 }
    case 'worker_fault':
      return { action: 'release', delaySeconds: faultDelaySeconds(attempt) }
    case 'rejected':
    case 'malformed':
    case 'unknown_type':
    case 'exhausted':
      return { action: 'bury', reason: reasonOf(outcome) }
    case 'failed':
    case 'deferred':
    case 'signalled':
    case 'timed_out':
    case 'limit_exceeded':
    case 'output_exceeded':
    case 'output_invalid':
    case 'not_started':
    case 'abandoned':
      if (attempt >= maxAttempts) {
        return { action: 'bury', reason: `${reasonOf(outcome)} (attempt ${attempt} of ${maxAttempts})` }
      }
      return { action: 'release', delaySeconds: backoffSeconds(attempt, rules, random) }
    default:
      return unreachable(outcome)
  }
}

/** Whole seconds to wait before attempt + 1: doubled each time, bounded, with up to 10 % added so that crowds disperse. */
export function backoffSeconds(attempt: number, rules: RetryRules, random: number): number {
  const doubled = rules.retryDelaySeconds * 2 ** Math.min(attempt - 1, 30)
  const bounded = Math.min(doubled, rules.retryDelayMaxSeconds)
  return Math.min(Math.round(bounded * (1 + JITTER * random)), Math.max(rules.retryDelayMaxSeconds, 0))
}

function faultDelaySeconds(faults: number): number {
  return Math.min(FAULT_DELAY_SECONDS * 2 ** Math.min(Math.max(0, faults - 1), 30), FAULT_DELAY_MAX_SECONDS)
}

/** True when the outcome counts as one of the job's attempts. */
export function spendsAttempt(outcome: Outcome): boolean {
  return outcome.kind !== 'interrupted' && outcome.kind !== 'worker_fault' && outcome.kind !== 'lost'
}

/** One line for people: the log, the status document, the reason of a burial. */
export function reasonOf(outcome: Outcome): string {
  switch (outcome.kind) {
    case 'success':
      return 'exit 0'
    case 'failed':
      return withLimits(outcome.exitCode === null ? outcome.error : `exit ${outcome.exitCode}`, outcome.limits)
    case 'rejected':
      if (outcome.exitCode === null) return outcome.error
      return outcome.exitCode === 65 ? 'exit 65: the input is bad' : `exit ${outcome.exitCode}: permanent`
    case 'deferred':
      return 'exit 75: try later'
    case 'signalled':
      return withLimits(`died by ${outcome.signal}`, outcome.limits)
    case 'timed_out':
      return `ended after ${outcome.limitSeconds} s (TTR + GRACE_TIME)`
    case 'interrupted':
      return 'interrupted: the worker stops'
    case 'limit_exceeded':
    case 'output_exceeded':
    case 'output_invalid':
    case 'not_started':
    case 'lost':
    case 'abandoned':
    case 'exhausted':
    case 'malformed':
    case 'unknown_type':
    case 'worker_fault':
      return outcome.detail
    default:
      return unreachable(outcome)
  }
}

function withLimits(reason: string, limits: string | undefined): string {
  return limits === undefined ? reason : `${reason} (${limits})`
}

function unreachable(value: never): never {
  throw new TypeError(`unhandled case ${JSON.stringify(value)}`)
}
