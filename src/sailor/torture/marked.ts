/**
 * Processes of a torture, found by what they carry in their environment: the mark that the torture gave to its workers
 * and their manifests, and the worker's own mark of a run. Helpers of a worker are found by the folders that they name.
 */

import { readdirSync, readFileSync } from 'node:fs'
import { isAlive, readProcess, TICKS_PER_SECOND, uptimeSeconds } from '../process.ts'

/** In the environment of all processes that a torture starts: its base directory, a slash, the worker's name. */
export const MARK = 'SAILOR_TORTURE'
/** Within exec(2) a process has no environment, and before it that of its parent. */
const SETTLED_SECONDS = 3

export interface Marked {
  readonly pid: number
  readonly startTicks: number
  /** of the worker it belongs to; undefined for the broker */
  readonly worker: string | undefined
  /** of a run; undefined for a worker itself */
  /**
   * A warm process is a run without an end of its own, which has many jobs and is none's: its `uuid` is its mark, and its
   * TTR infinite.
   */
  readonly run:
    | { readonly mark: string; readonly uuid: string; readonly attempt: string; readonly ttrSeconds: number }
    | undefined
}

/** All processes of the torture that are alive: of its workers, their runs, and its broker. */
export function findMarked(
  base: string,
  settled: Map<number, { ticks: number; marked: Marked | undefined }> = new Map(),
): Marked[] {
  const now = uptimeSeconds()
  const found: Marked[] = []
  for (const name of readdirSync('/proc')) {
    const pid = Number(name)
    if (!Number.isInteger(pid) || pid === process.pid) continue
    const sight = readProcess(pid)
    if (sight === undefined) continue
    const known = settled.get(pid)
    const isKnown = known !== undefined && known.ticks === sight.startTicks
    const marked = isKnown ? known.marked : readMark(base, pid, sight.startTicks)
    if (!isKnown && (marked?.run !== undefined || now - sight.startTicks / TICKS_PER_SECOND > SETTLED_SECONDS)) {
      settled.set(pid, { ticks: sight.startTicks, marked })
    }
    if (marked !== undefined) found.push(marked)
  }
  return found
}

function readMark(base: string, pid: number, startTicks: number): Marked | undefined {
  const text = readProc(pid, 'environ')
  if (!text.includes(base)) {
    // A helper of a worker may have been given an environment of its own.
    const isOurs = readProc(pid, 'cmdline').includes(base)
    return isOurs ? { pid, startTicks, worker: undefined, run: undefined } : undefined
  }
  const variables = new Map(
    text.split('\0').map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  )
  const mark = variables.get(MARK)
  const run = variables.get('QWORKER_RUN')
  const isOurs = mark?.startsWith(`${base}/`) || (run !== undefined && variables.get('HOME')?.startsWith(`${base}/`))
  if (!isOurs) return undefined
  return {
    pid,
    startTicks,
    worker: mark?.slice(base.length + 1) || undefined,
    run:
      run === undefined
        ? undefined
        : {
            mark: run,
            uuid: variables.get('QWORKER_UUID') ?? run,
            attempt: variables.get('QWORKER_ATTEMPT') ?? '?',
            ttrSeconds: Number(variables.get('QWORKER_TTR') ?? Number.POSITIVE_INFINITY),
          },
  }
}

function readProc(pid: number, name: 'environ' | 'cmdline'): string {
  try {
    return readFileSync(`/proc/${pid}/${name}`, 'latin1')
  } catch {
    return ''
  }
}

/** Ends all that the torture started and all that came of it, until nothing is found. */
export async function endAllMarked(base: string): Promise<void> {
  for (let looks = 0; looks < 100; looks++) {
    const found = findMarked(base)
    if (found.length === 0) return
    for (const { pid, startTicks } of found) endProcess(pid, startTicks)
    await new Promise((resolve) => setTimeout(resolve, 30))
  }
}

export function endProcess(pid: number, startTicks: number): void {
  if (!isAlive(pid, startTicks)) return
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // gone since we looked
  }
}
