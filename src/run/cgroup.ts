/**
 * Control groups of runs (cgroup v2), each a folder below the group that was delegated to the worker (delegation.ts):
 *
 *     <base>/worker                the worker and its guard
 *     <base>/<mark of the run>     all processes of one run, whatever they do to hide: only who may write to the files
 *                                  of both groups can leave one, and an algorithm with a user of its own may not
 *
 * The kernel keeps limits of the whole run, counts what it uses and ends it. Its first process enters before it becomes
 * the program: the worker hands it the opened `cgroup.procs`, which is checked with the rights of who opened it (Linux
 * 5.17, and the stable kernels of 2022); so it works for another user too. Where it fails the run goes on without, and
 * what limits the group was to keep are kept in their old way (limits.ts).
 */

import { closeSync, constants, mkdirSync, openSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Launcher, Limits } from './limits.ts'

/** How the groups of a run, or of all runs of a worker, are found. */
export interface GroupQuarry {
  /** of the run; undefined: those of all runs whose mark begins with `mark` */
  readonly pid: number | undefined
  readonly mark: string
  /** the folder that holds the groups; undefined where there are none */
  readonly cgroupBase?: string | undefined
}

/** Descriptor of the group's cgroup.procs in the first process of a run, until it has entered. */
export const ENTRY_FD = 3

/**
 * Fixed text; all values come as arguments: the number of words that only a run outside of its group needs, these words,
 * and the rest. 0 stands for who writes it: cgroups(7). A shell adds to the environment what it is to take out again.
 */
const ENTER_SCRIPT = `n=$1; shift; { echo 0 >&${ENTRY_FD}; } 2>/dev/null && shift "$n"; exec ${ENTRY_FD}>&-; unset PWD OLDPWD; exec "$@"`

/** Dying processes keep a group busy for a moment; those that cannot die keep it, and a later start removes it. */
const REMOVE_MS = 1000
/** Groups of one run: an algorithm may make more below its own, if it has the right to. */
const MOST_GROUPS = 1000

/** The group of one run. */
export interface Group {
  readonly path: string
  /** of its cgroup.procs, opened for writing: for the first process */
  readonly entry: number
}

/** What the kernel noted of a group; undefined where it does not tell. */
export interface GroupNotes {
  /** something ran in it */
  readonly wasEntered: boolean
  readonly cpuSeconds: number | undefined
  readonly peakMemoryBytes: number | undefined
  /** processes killed for want of memory: at the group's own limit, or for another reason */
  readonly memoryKills: { readonly count: number; readonly isOwnLimit: boolean }
  /** forks that were refused */
  readonly forksRefused: number
}

/** The groups of a worker's runs. */
export interface Groups {
  /** the folder that holds them */
  readonly base: string
  /** @returns undefined when it cannot be made: the run goes on without */
  make(mark: string, limits: Limits | undefined): Group | undefined
  /** Tells that groups do not work as they should; the first time only. */
  tell(problem: string): void
}

/** @param onProblem must not throw */
export function openGroups(base: string, onProblem: (problem: string) => void): Groups {
  let isTold = false
  const tell = (problem: string) => {
    if (!isTold) onProblem(`runs go on without their control groups where these fail (told once): ${problem}`)
    isTold = true
  }
  const make = (mark: string, limits: Limits | undefined) => {
    try {
      return makeGroup(base, mark, limits)
    } catch (error) {
      tell((error as Error).message)
      return undefined
    }
  }
  return { base, make, tell }
}

/** What stands before the program and its arguments, for a process that got a group's entry. */
export function entryLauncher(wordsOutside: Launcher): Launcher {
  return ['/bin/sh', '-c', ENTER_SCRIPT, 'enter', String(wordsOutside.length), ...wordsOutside]
}

/**
 * Makes a group with limits. All or nothing.
 * @throws what the file system throws; a limit that cannot be set is such a case
 */
export function makeGroup(base: string, name: string, limits: Limits = {}): Group {
  const path = join(base, name)
  mkdirSync(path)
  try {
    for (const [file, value] of settingsOf(limits)) writeFileSync(join(path, file), value, { flag: 'r+' })
    // A kernel without swap has no such file.
    if (limits.memoryBytes !== undefined) tryWrite(join(path, 'memory.swap.max'), '0')
    return { path, entry: openSync(join(path, 'cgroup.procs'), constants.O_WRONLY) }
  } catch (error) {
    tryRemove(path)
    throw error
  }
}

function settingsOf({ memoryBytes, processes }: Limits): [file: string, value: string][] {
  const settings: [string, string][] = []
  if (memoryBytes !== undefined) settings.push(['memory.max', String(memoryBytes)], ['memory.oom.group', '1'])
  if (processes !== undefined) settings.push(['pids.max', String(processes)])
  return settings
}

/** Reads what a group noted. Never throws. */
export function readNotes(path: string): GroupNotes {
  const usec = readKey(path, 'cpu.stat', 'usage_usec')
  const peak = Number(readText(join(path, 'memory.peak')) || Number.NaN)
  return {
    wasEntered: usec === undefined || usec > 0,
    cpuSeconds: usec === undefined ? undefined : Math.round(usec / 1000) / 1000,
    peakMemoryBytes: Number.isFinite(peak) ? peak : undefined,
    memoryKills: {
      count: readKey(path, 'memory.events', 'oom_kill') ?? 0,
      isOwnLimit: (readKey(path, 'memory.events', 'oom') ?? 0) > 0,
    },
    forksRefused: readKey(path, 'pids.events', 'max') ?? 0,
  }
}

/** Paths of the quarry's groups, and of those below them. */
export function listGroups({ pid, mark, cgroupBase }: GroupQuarry): string[] {
  if (cgroupBase === undefined || mark === '') return []
  if (pid !== undefined) return withGroupsBelow(join(cgroupBase, mark))
  return foldersIn(cgroupBase)
    .filter((name) => name.startsWith(mark))
    .flatMap((name) => withGroupsBelow(join(cgroupBase, name)))
}

/** The group itself first. */
function withGroupsBelow(path: string): string[] {
  const paths = [path]
  for (let i = 0; i < paths.length && paths.length < MOST_GROUPS; i++) {
    const each = paths[i] as string
    paths.push(...foldersIn(each).map((name) => join(each, name)))
  }
  return paths
}

function foldersIn(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name)
  } catch {
    return []
  }
}

/**
 * Numbers of the processes in these very groups. 0 is one of another pid namespace.
 * @throws what the file system throws, when it is not that the group is gone
 */
export function readMembers(path: string): number[] {
  try {
    return readFileSync(join(path, 'cgroup.procs'), 'latin1').split('\n').filter(Boolean).map(Number)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // EOPNOTSUPP: a group of threads, whose processes its parent lists.
    if (code === 'ENOENT' || code === 'ENODEV' || code === 'EOPNOTSUPP') return []
    throw error
  }
}

/** Whether any process lives in a group or below it. */
export function isPopulated(path: string): boolean {
  return readKey(path, 'cgroup.events', 'populated') === 1
}

/** SIGKILL to all processes of the quarry's groups at once, which no fork escapes; Linux 5.14 and later. */
export function killGroups(quarry: GroupQuarry): void {
  for (const path of listGroups(quarry)) tryWrite(join(path, 'cgroup.kill'), '1')
}

/** Removes the quarry's groups. Never throws. @returns those that cannot be: processes that cannot die are in them */
export async function removeGroups(quarry: GroupQuarry): Promise<string[]> {
  const began = performance.now()
  for (let pauseMs = 1; ; pauseMs = Math.min(2 * pauseMs, 50)) {
    // The lowest first.
    const left = listGroups(quarry)
      .reverse()
      .filter((path) => !tryRemove(path))
    if (left.length === 0 || performance.now() - began > REMOVE_MS) return left
    await sleep(pauseMs)
  }
}

function tryRemove(path: string): boolean {
  try {
    rmdirSync(path)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
  }
}

/** @returns undefined when it was written */
export function tryWrite(file: string, text: string): string | undefined {
  try {
    // Without O_CREAT, which these file systems take for a wish to make a file.
    const fd = openSync(file, constants.O_WRONLY)
    try {
      writeFileSync(fd, text)
    } finally {
      closeSync(fd)
    }
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

/** A number from a file of lines such as `oom_kill 1`. */
function readKey(path: string, file: string, key: string): number | undefined {
  const line = readText(join(path, file))
    .split('\n')
    .find((each) => each.startsWith(`${key} `))
  return line === undefined ? undefined : Number(line.slice(key.length + 1))
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}
