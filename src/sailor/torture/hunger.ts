/** When workers and their guards waited for a processor, as the kernel counts it. */

import { waitedSeconds } from '../process.ts'
import type { Interval, Stalls } from './deadline.ts'
import type { Marked } from './marked.ts'

/** For how long an interval may matter to a run that is alive. */
const MEMORY_SECONDS = 60
/** Waits shorter than this, between two looks, are everyday life. */
const HUNGRY_SECONDS = 0.02

export interface Hunger {
  /** Looks at all processes that are no runs. */
  note(marked: readonly Marked[], now: number): void
  stallsOf(worker: string, ofAll: readonly Interval[]): Stalls
}

export function makeHunger(): Hunger {
  const waited = new Map<string, number>()
  /** by worker; of guards, whose they are not being known, under no name */
  const intervals = new Map<string, Interval[]>()
  return {
    note: (marked: readonly Marked[], now: number) => {
      for (const { pid, startTicks, worker = '', run } of marked) {
        const total = run === undefined ? waitedSeconds(pid) : undefined
        if (total === undefined) continue
        const id = `${pid} ${startTicks}`
        const more = total - (waited.get(id) ?? 0)
        waited.set(id, total)
        if (more < HUNGRY_SECONDS) continue
        const recent = (intervals.get(worker) ?? []).filter(({ to }) => to === undefined || to > now - MEMORY_SECONDS)
        intervals.set(worker, [...recent, { from: now - more, to: now }])
      }
    },
    stallsOf: (worker: string, ofAll: readonly Interval[]): Stalls => ({
      worker: [...ofAll, ...(intervals.get(worker) ?? [])],
      guard: [...ofAll, ...(intervals.get('') ?? [])],
    }),
  }
}
