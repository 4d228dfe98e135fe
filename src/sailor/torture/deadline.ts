/** When a run must be gone at the latest. Pure; all times are seconds since boot. */

export interface Interval {
  readonly from: number
  /** undefined while it lasts */
  readonly to: number | undefined
}

export interface RunTimes {
  readonly started: number
  readonly ttrSeconds: number
}

export interface WorkerTimes {
  /** when the torture had stopped it (SIGSTOP) */
  readonly stops: readonly Interval[]
  /** when the torture killed it (SIGKILL) */
  readonly killedAt: number | undefined
}

/** What is promised: nothing of a run is alive later than TTR + GRACE_TIME + this. */
const PROMISED_SECONDS = 2
/** A worker that was killed takes its runs along within this time. */
const ORPHAN_SECONDS = 2
/** A worker that was stopped has this time to catch up. */
const WAKE_SECONDS = 2

/**
 * @param stalls times in which the torture itself got no processor: others may have had none either
 * @returns Infinity while it cannot be told, because the worker is stopped
 */
export function deadlineOf(
  run: RunTimes,
  graceSeconds: number,
  worker: WorkerTimes,
  stalls: readonly Interval[],
): number {
  const limit = run.started + run.ttrSeconds + graceSeconds + PROMISED_SECONDS
  const pauses = [
    ...stalls,
    ...worker.stops.map(({ from, to }) => ({ from, to: to === undefined ? undefined : to + WAKE_SECONDS })),
  ]
  const alive = extend(limit, run.started, pauses)
  if (worker.killedAt === undefined) return alive
  const since = Math.max(worker.killedAt, run.started)
  return Math.min(alive, extend(since + ORPHAN_SECONDS, since, stalls))
}

/** Moves a deadline by each pause that lies between `since` and the deadline as it is by then. */
function extend(deadline: number, since: number, pauses: readonly Interval[]): number {
  let extended = deadline
  for (const { from, to } of [...pauses].sort((a, b) => a.from - b.from)) {
    if (from >= extended) break
    if (to === undefined) return Number.POSITIVE_INFINITY
    if (to > since) extended += to - Math.max(from, since)
  }
  return extended
}
