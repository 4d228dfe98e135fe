/** Processes as Linux shows them below /proc. Zombies are dead: they only wait to be counted. */

import { readFileSync } from 'node:fs'

/** USER_HZ, in which /proc counts; 100 on every Linux that Node runs on. */
export const TICKS_PER_SECOND = 100

export interface ProcessSight {
  readonly pid: number
  /** since boot; with the pid it names a process for ever */
  readonly startTicks: number
  readonly parent: number
}

/** Undefined when it is gone, or a zombie. */
export function readProcess(pid: number): ProcessSight | undefined {
  let text: string
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  // The second field is the program's name in brackets, and may hold blanks and brackets itself: proc_pid_stat(5).
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined
  return { pid, parent: Number(fields[1]), startTicks: Number(fields[19]) }
}

export function isAlive(pid: number, startTicks: number): boolean {
  return readProcess(pid)?.startTicks === startTicks
}

/** Seconds since boot: the clock by which /proc tells the start of a process. */
export function uptimeSeconds(): number {
  return Number(readFileSync('/proc/uptime', 'latin1').split(' ', 1)[0])
}

/** Seconds that its first thread has waited for a processor since it began; undefined where the kernel does not tell. */
export function waitedSeconds(pid: number): number | undefined {
  try {
    const nanoseconds = Number(readFileSync(`/proc/${pid}/schedstat`, 'latin1').split(' ')[1])
    return Number.isNaN(nanoseconds) ? undefined : nanoseconds / 1e9
  } catch {
    return undefined
  }
}
