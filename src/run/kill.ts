/**
 * Ending a run: every process of it, not only the first.
 *
 * A run's first process leads a session and process group of its own, and the environment of each of its processes
 * holds the run's mark. Children may leave the group (setsid), lose their parent (double fork), or both; the mark stays.
 * Where `/proc` exists, a process belongs to the run when it carries the mark, is in the run's session, works in the
 * run's scratch directory, writes to the run's streams, or descends from one that does. Processes that are older than
 * the run are never looked at, so a recycled number cannot be mistaken for it.
 *
 *     TERM (and CONT: a stopped process must wake to see it) - up to 1 s - KILL until two looks find nothing
 *
 * Elsewhere only descendants (tree-kill, by way of `ps`) and the process group are found; the receipt says `tree`.
 */

import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import treeKill from 'tree-kill'
import type { KillReceipt } from '../job/outcome.ts'

/** Name of the environment variable that marks the processes of a run. */
export const MARK_VARIABLE = 'QWORKER_RUN'

/** How a run's processes are recognised. */
export interface RunIdentity {
  /** of the first process; it leads the session and group */
  readonly pid: number
  /** value of MARK_VARIABLE, different for every run */
  readonly mark: string
  /** absolute path below which only this run works */
  readonly workdir: string
  /** start of the first process in clock ticks since boot; undefined where there is no /proc */
  readonly startTicks: number | undefined
}

/** Time between SIGTERM and SIGKILL. */
export const TERM_TO_KILL_MS = 1000
const GIVE_UP_MS = 5000
const POLL_MS = 20

export const hasProc: boolean = existsSync('/proc/self/stat') && existsSync('/proc/self/environ')

interface ProcessStat {
  readonly pid: number
  readonly parent: number
  readonly session: number
  readonly state: string
  readonly startTicks: number
}

/** Start of a process in clock ticks since boot, or undefined when it is gone or there is no /proc. */
export function startTicksOf(pid: number): number | undefined {
  return readStat(pid)?.startTicks
}

/** Ends a run that is still going on: TERM first, KILL after a second. */
export function killTree(
  run: RunIdentity,
  options: { useProc?: boolean; termToKillMs?: number } = {},
): Promise<KillReceipt> {
  return (options.useProc ?? hasProc)
    ? endByProc(run, options.termToKillMs ?? TERM_TO_KILL_MS)
    : endByTree(run, options.termToKillMs ?? TERM_TO_KILL_MS)
}

/**
 * Ends what a run left behind after its first process ended by itself. They had their time: KILL at once.
 * @returns undefined when nothing was left
 */
export async function sweepLeftovers(run: RunIdentity, useProc: boolean = hasProc): Promise<KillReceipt | undefined> {
  if (useProc) return findProcesses(run).length === 0 ? undefined : endByProc(run, 0)
  return isGroupAlive(run.pid) ? endByTree(run, 0) : undefined
}

/** Processes of the run that are alive (a zombie is not), from `/proc`. */
export function findProcesses(run: RunIdentity): number[] {
  const own = new Set<number>()
  const others: ProcessStat[] = []
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const stat = readStat(Number(name))
    if (stat === undefined || stat.state === 'Z' || stat.state === 'X') continue
    if (run.startTicks !== undefined && stat.startTicks < run.startTicks) continue
    if (stat.pid === process.pid) continue
    if (isOwn(stat, run)) own.add(stat.pid)
    else others.push(stat)
  }
  let grew = own.size > 0
  while (grew) {
    grew = false
    for (const stat of others) {
      if (own.has(stat.pid) || !own.has(stat.parent)) continue
      own.add(stat.pid)
      grew = true
    }
  }
  return [...own]
}

function isOwn(stat: ProcessStat, run: RunIdentity): boolean {
  if (stat.session === run.pid) return true
  if (carriesMark(stat.pid, run.mark)) return true
  return [`cwd`, `fd/1`, `fd/2`].some((link) => linkOf(stat.pid, link).startsWith(`${run.workdir}/`))
}

function carriesMark(pid: number, mark: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/environ`).includes(`${MARK_VARIABLE}=${mark}`)
  } catch {
    return false
  }
}

function linkOf(pid: number, link: string): string {
  try {
    return readlinkSync(`/proc/${pid}/${link}`)
  } catch {
    return ''
  }
}

function readStat(pid: number): ProcessStat | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // The second field is the program's name in brackets, and may hold blanks and brackets itself: proc_pid_stat(5).
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return {
      pid,
      state: fields[0] ?? 'X',
      parent: Number(fields[1]),
      session: Number(fields[3]),
      startTicks: Number(fields[19]),
    }
  } catch {
    return undefined
  }
}

type SentSignal = KillReceipt['signals'][number]

async function endByProc(run: RunIdentity, termToKillMs: number): Promise<KillReceipt> {
  const began = performance.now()
  const since = () => Math.round(performance.now() - began)
  const signals: SentSignal[] = []
  if (termToKillMs > 0) {
    const found = findProcesses(run)
    signals.push({ signal: 'SIGTERM', at_ms: since(), processes: found.length })
    for (const pid of found) send(pid, 'SIGTERM')
    for (const pid of found) send(pid, 'SIGCONT')
    while (since() < termToKillMs && findProcesses(run).length > 0) await sleep(Math.min(POLL_MS, termToKillMs))
  }
  let survivors = findProcesses(run)
  if (survivors.length > 0) signals.push({ signal: 'SIGKILL', at_ms: since(), processes: survivors.length })
  const killing = performance.now()
  // A process that forks while we look can be missed once: only two empty looks in a row are believed.
  for (let empty = 0; empty < 2; ) {
    for (const pid of survivors) send(pid, 'SIGKILL')
    if (performance.now() - killing > GIVE_UP_MS) break
    await sleep(survivors.length > 0 ? 5 : 1)
    survivors = findProcesses(run)
    empty = survivors.length === 0 ? empty + 1 : 0
  }
  return { signals, duration_ms: since(), survivors, method: 'proc' }
}

async function endByTree(run: RunIdentity, termToKillMs: number): Promise<KillReceipt> {
  const began = performance.now()
  const since = () => Math.round(performance.now() - began)
  const signals: SentSignal[] = []
  if (termToKillMs > 0) {
    signals.push({ signal: 'SIGTERM', at_ms: since(), processes: 1 })
    await signalTree(run.pid, 'SIGTERM')
    send(-run.pid, 'SIGCONT')
    while (since() < termToKillMs && isGroupAlive(run.pid)) await sleep(POLL_MS)
  }
  if (isGroupAlive(run.pid)) {
    signals.push({ signal: 'SIGKILL', at_ms: since(), processes: 1 })
    await signalTree(run.pid, 'SIGKILL')
    send(-run.pid, 'SIGKILL')
  }
  const killing = performance.now()
  while (isGroupAlive(run.pid) && performance.now() - killing < GIVE_UP_MS) await sleep(POLL_MS)
  return { signals, duration_ms: since(), survivors: isGroupAlive(run.pid) ? [run.pid] : [], method: 'tree' }
}

/** tree-kill throws where `ps` is missing, and reports processes that are gone already: neither is news here. */
function signalTree(pid: number, signal: string): Promise<void> {
  return new Promise((resolve) => treeKill(pid, signal, () => resolve()))
}

function isGroupAlive(pid: number): boolean {
  try {
    process.kill(-pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // gone since we looked
  }
}
