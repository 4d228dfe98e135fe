/**
 * Limits of an algorithm, kept by the kernel. Where runs have control groups (cgroup.ts), memory and processes are
 * limits of the group, which hold for the whole run; all others, and these two elsewhere, are resource limits. Between the worker and the program stands a launcher that sets resource
 * limits and becomes the program by exec(2): the process id stays, and who has no limits pays nothing.
 *
 * Each limit holds for each process of a run; `processes` for all of one user (setrlimit(2)). Memory is RLIMIT_DATA:
 * heap and private writable mappings, which since Linux 4.7 is nearly all that a program can fill. RLIMIT_AS counts
 * address space as well, of which runtimes reserve far more than they use: Node.js does not start with 600 MB of it
 * ("Failed to reserve virtual memory for CodeRange"), and starts with 48 MiB of data.
 */

import { execFile } from 'node:child_process'
import { accessSync, constants as modes } from 'node:fs'
import { constants } from 'node:os'
import { delimiter, isAbsolute, join } from 'node:path'
import { promisify } from 'node:util'
import { formatBytes } from '../job/bytes.ts'
import type { Outcome, Usage } from '../job/outcome.ts'
import type { GroupNotes } from './cgroup.ts'
import type { AlgorithmUser } from './user.ts'

export interface Limits {
  readonly memoryBytes?: number | undefined
  readonly cpuSeconds?: number | undefined
  readonly processes?: number | undefined
  readonly fileSizeBytes?: number | undefined
  readonly openFiles?: number | undefined
}

/** Words before the program and its arguments. */
export type Launcher = readonly string[]

/** After SIGXCPU, in seconds of processor time, comes SIGKILL. */
const CPU_KILL_AFTER_SECONDS = 1
/** A peak so near to the limit is worth a word. */
const NEAR = 0.9
const PROBE_MS = 10_000

/** In place of resource limits that cannot be set, where a run could not enter its group: it is put off, not run without. */
const REFUSAL_SCRIPT = 'echo "qworker: its limits cannot be kept: it has no control group now ($1)" >&2; exit 75'

/** A shell keeps descriptors that it replaces aside, from number 10 on: with fewer it cannot open the streams of a run. */
const SHELL_FILES = 16

/** Fixed text: each value comes as an argument. It ends as the program, or with 126 and what the shell says of it. */
const ULIMIT_SCRIPT = 'while [ "$1" != -- ]; do ulimit "$1" "$2" || exit 126; shift 2; done; shift; exec "$@"'

/**
 * Finds how limits are set on this machine, and tries it.
 * @param path the PATH in which prlimit(1) and sh(1) are looked for
 * @param user whom the algorithm runs as, if not as the worker
 * @returns what stands in the way, where a limit cannot be kept here: it must not be ignored
 */
export async function findLauncher(
  limits: Limits,
  path: string,
  user: AlgorithmUser | undefined,
): Promise<Launcher | { problem: string }> {
  if (limits.processes !== undefined && (user?.uid ?? process.geteuid?.()) === 0) {
    const problem =
      'processes cannot be enforced: the kernel does not count the processes of root; give it a user: of its own'
    return { problem: `limits: ${problem}` }
  }
  if (limits.memoryBytes !== undefined && process.platform !== 'linux') {
    return { problem: `limits: memory is enforced on Linux only; this is ${process.platform}` }
  }
  const problems: string[] = []
  for (const launcher of launchersFor(limits, path)) {
    const problem = await tryLauncher(launcher, user)
    if (problem === undefined) return launcher
    problems.push(problem)
  }
  const remedy = 'install prlimit (util-linux), or raise the limits of the worker'
  const why = problems.length === 0 ? 'neither prlimit nor sh is in PATH' : problems.join('; ')
  return { problem: `limits: ${describeLimits(limits)} cannot be set on this machine (${why}): ${remedy}` }
}

/** How the limits of an algorithm are kept on this machine. */
export interface Restraint {
  /** sets resource limits */
  readonly launcher: Launcher
  /** the same as words for ulimit, in pairs, where the run's own shell (launcher.ts) can set them; undefined: it cannot */
  readonly ulimits?: readonly string[] | undefined
  /** what groups keep; undefined: nothing, or there are no groups */
  readonly inGroup?: Limits | undefined
  /** stands before the launcher where a run is in no group, and keeps `inGroup` as far as resource limits can */
  readonly standIn?: Launcher | undefined
}

/**
 * Divides limits among control groups and resource limits.
 * @param controllers those of cgroup v2 that hold for each run; empty without groups
 */
export async function findRestraint(
  limits: Limits,
  path: string,
  user: AlgorithmUser | undefined,
  controllers: readonly string[],
): Promise<Restraint | { problem: string }> {
  const inGroup: Limits = {
    ...(controllers.includes('memory') && limits.memoryBytes !== undefined && { memoryBytes: limits.memoryBytes }),
    ...(controllers.includes('pids') && limits.processes !== undefined && { processes: limits.processes }),
  }
  const rest = Object.entries(limits).filter(([key, value]) => value !== undefined && !(key in inGroup))
  // Also without any: it keeps core files away.
  const launcher = await findLauncher(Object.fromEntries(rest), path, user)
  if ('problem' in launcher) return launcher
  const ulimits = user === undefined ? await findUlimits(Object.fromEntries(rest)) : undefined
  if (Object.keys(inGroup).length === 0) return { launcher, ulimits }
  const found = await findLauncher(inGroup, path, user)
  const standIn = 'problem' in found ? ['/bin/sh', '-c', REFUSAL_SCRIPT, 'limits', describeLimits(inGroup)] : found
  return { launcher, ulimits, inGroup, standIn }
}

/** What the shell of launchers sets without a program in between; tried. */
async function findUlimits(limits: Limits): Promise<readonly string[] | undefined> {
  if (limits.openFiles !== undefined && limits.openFiles < SHELL_FILES) return undefined
  for (const option of optionsForProcesses(limits)) {
    const pairs = ulimitPairs(limits, option)
    if ((await tryLauncher(['/bin/sh', '-c', ULIMIT_SCRIPT, 'limits', ...pairs, '--'], undefined)) === undefined)
      return pairs
  }
  return undefined
}

/** No standard names the option for processes: most shells take -u, dash takes -p, which is another thing elsewhere. */
function optionsForProcesses({ processes }: Limits): string[] {
  return processes === undefined ? ['-u'] : ['-u', '-p']
}

/** Those that may work here, the best first. */
function launchersFor(limits: Limits, path: string): Launcher[] {
  const prlimit = process.platform === 'linux' ? findInPath('prlimit', path) : undefined
  if (prlimit !== undefined) return [[prlimit, ...prlimitOptions(limits), '--']]
  const sh = findInPath('sh', path)
  if (sh === undefined) return []
  return optionsForProcesses(limits).map((option) => [
    sh,
    '-c',
    ULIMIT_SCRIPT,
    'limits',
    ...ulimitPairs(limits, option),
    '--',
  ])
}

function findInPath(name: string, path: string): string | undefined {
  return path
    .split(delimiter)
    .filter(isAbsolute)
    .map((dir) => join(dir, name))
    .find((file) => {
      try {
        accessSync(file, modes.X_OK)
        return true
      } catch {
        return false
      }
    })
}

function prlimitOptions({ memoryBytes, cpuSeconds, processes, fileSizeBytes, openFiles }: Limits): string[] {
  const options = ['--core=0']
  if (memoryBytes !== undefined) options.push(`--data=${memoryBytes}`)
  if (cpuSeconds !== undefined) options.push(`--cpu=${cpuSeconds}:${cpuSeconds + CPU_KILL_AFTER_SECONDS}`)
  if (processes !== undefined) options.push(`--nproc=${processes}`)
  if (fileSizeBytes !== undefined) options.push(`--fsize=${fileSizeBytes}`)
  if (openFiles !== undefined) options.push(`--nofile=${openFiles}`)
  return options
}

/** In the units of POSIX and of every sh: KiB of data, blocks of 512 bytes for files. The soft one first: it is at most the hard one. */
function ulimitPairs({ memoryBytes, cpuSeconds, processes, fileSizeBytes, openFiles }: Limits, nproc: string) {
  const pairs = ['-c', '0']
  if (memoryBytes !== undefined) pairs.push('-d', String(Math.ceil(memoryBytes / 1024)))
  if (cpuSeconds !== undefined)
    pairs.push('-St', String(cpuSeconds), '-Ht', String(cpuSeconds + CPU_KILL_AFTER_SECONDS))
  if (processes !== undefined) pairs.push(nproc, String(processes))
  if (fileSizeBytes !== undefined) pairs.push('-f', String(Math.ceil(fileSizeBytes / 512)))
  if (openFiles !== undefined) pairs.push('-n', String(openFiles))
  return pairs
}

/** @returns what the launcher says, or undefined when a program starts with it */
async function tryLauncher(launcher: Launcher, user: AlgorithmUser | undefined): Promise<string | undefined> {
  const [file = '', ...args] = [...launcher, '/bin/sh', '-c', 'exit 0']
  const rights = user === undefined ? {} : { uid: user.uid, gid: user.gid }
  try {
    await promisify(execFile)(file, args, { ...rights, env: {}, cwd: '/', timeout: PROBE_MS })
    return undefined
  } catch (error) {
    const { stderr = '', message } = error as Error & { stderr?: string }
    return (stderr.trim() || message).split('\n', 1)[0]
  }
}

/** Such as `memory 512 MiB, cpu_seconds 10`. */
export function describeLimits(limits: Limits): string {
  const words: string[] = []
  if (limits.memoryBytes !== undefined) words.push(`memory ${formatBytes(limits.memoryBytes)}`)
  if (limits.cpuSeconds !== undefined) words.push(`cpu_seconds ${limits.cpuSeconds}`)
  if (limits.processes !== undefined) words.push(`processes ${limits.processes}`)
  if (limits.fileSizeBytes !== undefined) words.push(`file_size ${formatBytes(limits.fileSizeBytes)}`)
  if (limits.openFiles !== undefined) words.push(`open_files ${limits.openFiles}`)
  return words.join(', ')
}

/**
 * Names the limit that a run met, where the kernel tells it. For other failures the limits in force are noted: a program
 * that is refused memory, a process or a descriptor fails in words of its own.
 * @param firstCpuSeconds processor time of the first process alone, as far as it is known
 * @param notes of the run's group, if it was in one
 */
export function nameLimit(
  outcome: Outcome,
  limits: Limits | undefined,
  usage: Pick<Usage, 'peak_memory_bytes'>,
  firstCpuSeconds: number | null,
  notes?: GroupNotes,
): Outcome {
  if (outcome.kind !== 'failed' && outcome.kind !== 'signalled') return outcome
  const inGroup = notes && nameGroupLimit(outcome, limits ?? {}, notes)
  if (inGroup !== undefined || limits === undefined) return inGroup ?? outcome
  const { cpuSeconds, fileSizeBytes } = limits
  const sign = outcome.kind === 'signalled' ? outcome.signal : signalOfExit(outcome.exitCode)
  const how = outcome.kind === 'signalled' ? sign : `${sign}: exit ${outcome.kind === 'failed' ? outcome.exitCode : ''}`
  const exceeded = (detail: string): Outcome => ({ kind: 'limit_exceeded', detail })
  if (cpuSeconds !== undefined) {
    if (sign === 'SIGXCPU') return exceeded(`it used more than ${cpuSeconds} s of processor time (cpu_seconds, ${how})`)
    // It was deaf to SIGXCPU. Who else but the kernel kills a process at that moment?
    if (outcome.kind === 'signalled' && sign === 'SIGKILL' && (firstCpuSeconds ?? 0) >= cpuSeconds)
      return exceeded(`it used more than ${cpuSeconds} s of processor time (cpu_seconds, SIGKILL after SIGXCPU)`)
  }
  if (fileSizeBytes !== undefined && sign === 'SIGXFSZ')
    return exceeded(`it wrote a file longer than ${formatBytes(fileSizeBytes)} (file_size, ${how})`)
  return { ...outcome, limits: `limits: ${describeLimits(limits)}${peakNote(limits, usage.peak_memory_bytes)}` }
}

function nameGroupLimit(
  outcome: Extract<Outcome, { kind: 'failed' | 'signalled' }>,
  { memoryBytes, processes }: Limits,
  { memoryKills, forksRefused }: GroupNotes,
): Outcome | undefined {
  const how = outcome.kind === 'signalled' ? outcome.signal : `exit ${outcome.exitCode}`
  if (memoryKills.count > 0) {
    if (memoryBytes === undefined || !memoryKills.isOwnLimit)
      return { ...outcome, limits: 'killed by the kernel: the machine, or the service, had no memory left' }
    const detail = `it used more than ${formatBytes(memoryBytes)} of memory (memory, killed by the kernel, ${how})`
    return { kind: 'limit_exceeded', detail }
  }
  if (processes === undefined || forksRefused === 0) return undefined
  const times = forksRefused === 1 ? 'once' : `${forksRefused} times`
  const detail = `it asked for more than ${processes} processes and threads, and was refused ${times} (processes, ${how})`
  return { kind: 'limit_exceeded', detail }
}

/** What a shell exits with when its child died by one of the two signals of the kernel's limits. */
function signalOfExit(exitCode: number | null): string | undefined {
  if (exitCode === null) return undefined
  return (['SIGXCPU', 'SIGXFSZ'] as const).find((name) => exitCode === 128 + constants.signals[name])
}

function peakNote({ memoryBytes }: Limits, peak: number | null): string {
  if (memoryBytes === undefined || peak === null || peak < NEAR * memoryBytes) return ''
  return `, peak ${formatBytes(peak)}`
}
