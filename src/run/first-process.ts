/** The first process of a run: started by the slot's launcher (launcher.ts) where that can, else by Node itself. */

import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { closeSync, fchownSync, openSync, realpathSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import type { Outcome } from '../job/outcome.ts'
import {
  type Algorithm,
  AlgorithmError,
  commandFor,
  explainStartFailure,
  findStartFailure,
  resolveProgram,
} from './algorithm.ts'
import { entryLauncher, type Group, removeGroups } from './cgroup.ts'
import type { RunIdentity } from './kill.ts'
import type { Exit } from './launcher.ts'
import { type Leader, MARK_VARIABLE, startTicksOf } from './look.ts'
import type { RunEnd, RunRequest } from './run.ts'
import { accessProblem } from './user.ts'
import type { Workdir } from './workdir.ts'

/** Faults of this machine at fork; the job is not to blame. */
export const MACHINE_FAULTS: ReadonlySet<string> = new Set(['EAGAIN', 'ENOMEM', 'EMFILE', 'ENFILE', 'ENOSPC', 'EIO'])

/** With these a shell ends that cannot become the program; the program may, too. */
const EXEC_FAILURES: readonly (number | null)[] = [126, 127]

/** @returns why the program was not started, where that is what the exit code means */
export async function explainExit(
  algorithm: Algorithm,
  file: string,
  exitCode: number | null,
): Promise<Extract<Outcome, { kind: 'not_started' }> | undefined> {
  if (!EXEC_FAILURES.includes(exitCode)) return undefined
  const why = await findStartFailure(file)
  return why === undefined ? undefined : { kind: 'not_started', detail: startFailure(algorithm, file, why) }
}

export function startFailure({ name }: Algorithm, file: string, why: string): string {
  return `algorithm ${name}: its program ${file} cannot be started: ${why}`
}

export interface StartedProcess {
  readonly identity: RunIdentity
  readonly exited: Promise<Exit>
  /** descriptors of stdout.log and stderr.log, opened before the run could touch them */
  readonly streams: readonly [number, number]
  /** undefined: it has none */
  readonly group: Group | undefined
  /** the program */
  readonly file: string
}

/** @throws only what the file system throws: a fault of the machine */
export async function startFirstProcess(
  request: RunRequest,
  started: Date,
): Promise<StartedProcess | { outcome: Outcome }> {
  const { algorithm, workdir } = request
  const values = { ttr: request.ttrSeconds, uuid: request.uuid, attempt: request.attempt }
  const [program = '', ...args] = commandFor(algorithm, values)
  const found = findProgram(request, program)
  if ('outcome' in found) return found
  const file = found.path
  const barred = algorithm.user && (await accessProblem(algorithm.user, workdir.scratch, file))
  if (barred) return { outcome: { kind: 'not_started', detail: `algorithm ${algorithm.name}: ${barred}` } }
  if (request.signal.aborted) return { outcome: request.signal.reason as RunEnd }
  const mark = `${request.workerId}.${request.uuid}.${request.attempt}.${randomUUID().slice(-17).replace('-', '')}`
  const realPath = realPathOf(workdir.path)
  const streams = openStreams(workdir)
  const group = request.groups?.make(mark, algorithm.restraint?.inGroup)
  const plan: Plan = { file, args, request, environment: environmentOf(request, mark, started), group }
  const spawned = (await launch(plan)) ?? (await spawnProgram(plan, streams))
  if (group !== undefined) closeSync(group.entry)
  const cgroupBase = group && request.groups?.base
  if ('outcome' in spawned) {
    closeAll(streams)
    await removeGroups({ pid: 0, mark, cgroupBase })
    return spawned
  }
  const { pid, leader, exited } = spawned
  // Of one in a launcher's session the start is asked for when it is needed: most are gone before.
  const startTicks = leader === undefined ? startTicksOf(pid) : leader.startTicks
  const identity = { pid, mark, workdir: realPath, startTicks, cgroupBase, leader }
  return { identity, exited, streams, group, file }
}

/** Where the program of an algorithm is, or why it cannot be started. */
export function findProgram(
  { algorithm, environment }: RunRequest,
  program: string,
): { path: string } | { outcome: Outcome } {
  try {
    return { path: resolveProgram(algorithm, program, environment.PATH ?? '') }
  } catch (error) {
    if (!(error instanceof AlgorithmError)) throw error
    return { outcome: { kind: 'not_started', detail: error.message } }
  }
}

/** What is to be started. */
interface Plan {
  readonly file: string
  readonly args: readonly string[]
  readonly request: RunRequest
  readonly environment: Readonly<Record<string, string>>
  readonly group: Group | undefined
}

interface Spawned {
  readonly pid: number
  readonly leader?: Leader
  readonly exited: Promise<Exit>
}

/** Undefined: Node has to. */
async function launch({
  file,
  args,
  request,
  environment,
  group,
}: Plan): Promise<Spawned | { outcome: Outcome } | undefined> {
  const { launcher, workdir, algorithm } = request
  if (launcher === undefined || algorithm.user !== undefined) return undefined
  const { standIn = [], launcher: limiter = [], ulimits } = algorithm.restraint ?? {}
  const entry = group === undefined ? standIn : entryLauncher(standIn)
  const launched = await launcher.start({
    words: [...entry, ...(ulimits === undefined ? limiter : []), file, ...args],
    limits: ulimits,
    environment,
    directory: workdir.scratch,
    stdin: workdir.input,
    stdout: workdir.stdout,
    stderr: workdir.stderr,
    entry: group && join(group.path, 'cgroup.procs'),
  })
  if (launched === undefined || 'pid' in launched) return launched
  launcher.replace()
  return { outcome: { kind: 'worker_fault', detail: `${file} cannot be started: ${launched.problem}` } }
}

/** The links in /proc, by which stray processes are found, are real paths. All runs of a worker are in one folder. */
let realFolder = { path: '', real: '' }

function realPathOf(path: string): string {
  const folder = dirname(path)
  if (realFolder.path !== folder) realFolder = { path: folder, real: realpathSync(folder) }
  return join(realFolder.real, basename(path))
}

type Streams = readonly [stdout: number, stderr: number]

/** Both or none. Appending: several processes of a run may write to one stream, and none shall overwrite another. */
function openStreams(workdir: Workdir): Streams {
  const stdout = openSync(workdir.stdout, 'a+', 0o644)
  try {
    return [stdout, openSync(workdir.stderr, 'a+', 0o644)]
  } catch (error) {
    closeSync(stdout)
    throw error
  }
}

function closeAll(fds: readonly number[]): void {
  for (const fd of fds) closeSync(fd)
}

/**
 * Node's own spawn: without a free descriptor (EMFILE), execa 9.6 throws before it listens to the child's `error`,
 * which then ends the worker.
 */
async function spawnProgram(plan: Plan, streams: Streams): Promise<Spawned | { outcome: Outcome }> {
  const { file, request } = plan
  let stdin: number | undefined
  try {
    stdin = openSync(request.workdir.input, 'r')
    const child = spawnWith(plan, [stdin, ...streams])
    const failure = new Promise<NodeJS.ErrnoException>((resolve) => child.once('error', resolve))
    const { pid } = child
    if (pid === undefined) return { outcome: await explainFailure(request.algorithm, file, await failure) }
    const exited = new Promise<Exit>((resolve) =>
      child.once('exit', (exitCode, signal) => resolve({ exitCode, signal: signal ?? undefined })),
    )
    return { pid, exited }
  } catch (error) {
    return { outcome: await explainFailure(request.algorithm, file, error as NodeJS.ErrnoException) }
  } finally {
    if (stdin !== undefined) closeSync(stdin)
  }
}

function spawnWith(
  { file, args, request, environment, group }: Plan,
  stdio: readonly [stdin: number, ...Streams],
): ChildProcess {
  const { restraint: { standIn = [], launcher = [] } = {}, user } = request.algorithm
  const entry = group === undefined ? standIn : entryLauncher(standIn)
  const [first = file, ...rest] = [...entry, ...launcher, file, ...args]
  const rights = user === undefined ? {} : { uid: user.uid, gid: user.gid }
  // Who opens /dev/stderr anew needs the right to.
  if (user !== undefined) for (const fd of stdio.slice(1)) fchownSync(fd, user.uid, user.gid)
  const handed = group === undefined ? [...stdio] : [...stdio, group.entry]
  const options = { cwd: request.workdir.scratch, env: environment, stdio: handed, detached: true, ...rights }
  return spawn(first, rest, options)
}

async function explainFailure(
  algorithm: Algorithm,
  file: string,
  { code = '', message }: NodeJS.ErrnoException,
): Promise<Outcome> {
  if (MACHINE_FAULTS.has(code)) return { kind: 'worker_fault', detail: `${file}: ${message}` }
  const why = (await explainStartFailure(file, code)) ?? message
  return { kind: 'not_started', detail: startFailure(algorithm, file, why) }
}

function environmentOf(request: RunRequest, mark: string, started: Date): Record<string, string> {
  return {
    HOME: request.workdir.scratch,
    TMPDIR: request.workdir.scratch,
    ...(request.algorithm.user && { USER: request.algorithm.user.name, LOGNAME: request.algorithm.user.name }),
    ...request.environment,
    ...request.algorithm.env,
    QWORKER_UUID: request.uuid,
    QWORKER_TYPE: request.type,
    QWORKER_ATTEMPT: String(request.attempt),
    QWORKER_MAX_ATTEMPTS: String(request.maxAttempts),
    QWORKER_TUBE: request.tube,
    QWORKER_PRIORITY: String(request.priority),
    QWORKER_TTR: String(request.ttrSeconds),
    QWORKER_DEADLINE: new Date(started.getTime() + request.limitSeconds * 1000).toISOString(),
    [MARK_VARIABLE]: mark,
  }
}
