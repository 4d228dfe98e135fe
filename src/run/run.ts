/** A process in, an Outcome out. */

import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, fchownSync, fstatSync, openSync, realpathSync } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import type { KillReceipt, Outcome, Usage } from '../job/outcome.ts'
import { nestingDepth } from '../job/package.ts'
import type { SkippedFile } from '../job/result.ts'
import {
  type Algorithm,
  AlgorithmError,
  commandFor,
  explainStartFailure,
  findStartFailure,
  resolveProgram,
} from './algorithm.ts'
import { entryLauncher, type Group, type GroupNotes, type Groups, readNotes, removeGroups } from './cgroup.ts'
import { killTree, type RunIdentity, sweepLeftovers } from './kill.ts'
import { nameLimit } from './limits.ts'
import { MARK_VARIABLE, startTicksOf } from './look.ts'
import { type Sampled, startSampling } from './usage.ts'
import { accessProblem } from './user.ts'
import {
  collectOutputs,
  directoryBytes,
  leaveEmptyStreams,
  type Output,
  readTail,
  reclaimStreams,
  STDERR_TAIL_BYTES,
  type Workdir,
} from './workdir.ts'

export interface RunRequest {
  readonly algorithm: Algorithm
  readonly workdir: Workdir
  /** of the worker: by it the runs of one that died are found */
  readonly workerId: string
  readonly uuid: string
  readonly type: string
  readonly attempt: number
  readonly maxAttempts: number
  readonly tube: string
  readonly priority: number
  readonly ttrSeconds: number
  /** seconds after which the run is ended: TTR + GRACE_TIME */
  readonly limitSeconds: number
  /** PATH and the like that every algorithm gets */
  readonly environment: Readonly<Record<string, string>>
  /** bytes for each of stdout and stderr */
  readonly maxOutputBytes: number
  /** bytes for the scratch directory */
  readonly maxScratchBytes: number
  /** where runs have control groups */
  readonly groups?: Groups | undefined
  /** Aborted with a `RunEnd` as its reason, ends the run before its time. */
  readonly signal: AbortSignal
  /** Called once when the first process is there, and when the run is about to be ended by us. They must not throw. */
  readonly onStarted?: (pid: number) => void
  readonly onEnding?: (pid: number, why: RunEnd['kind']) => void
}

/** Why we end a run. */
export type RunEnd = Extract<Outcome, { kind: 'timed_out' | 'interrupted' | 'lost' | 'output_exceeded' }>

export interface RunReport {
  readonly outcome: Outcome
  /** of the first process; null when it died by a signal or never was */
  readonly exitCode: number | null
  readonly signal: string | undefined
  readonly pid: number | undefined
  readonly started: Date
  readonly ended: Date
  readonly durationSeconds: number
  readonly kill: KillReceipt | undefined
  /** undefined when no process was started */
  readonly usage: Usage | undefined
  readonly stderrTail: string
  /** JSON text; only after a success */
  readonly resultJson: string | undefined
  readonly outputs: readonly Output[]
  readonly skipped: readonly SkippedFile[]
}

/** Larger results belong in a file: the document is checked as a whole, and the other slots wait meanwhile (tenths of a second). */
export const MAX_RESULT_BYTES = 4 * 2 ** 20
/** Deeper results crash the recursive parsers of those who read them. */
export const MAX_RESULT_DEPTH = 1000
const MAX_TEXT_RESULT_BYTES = 64 * 2 ** 10
export const STREAM_CHECK_MS = 100
const SCRATCH_CHECK_MS = 1000
/** Faults of this machine at fork; the job is not to blame. */
export const MACHINE_FAULTS: ReadonlySet<string> = new Set(['EAGAIN', 'ENOMEM', 'EMFILE', 'ENFILE', 'ENOSPC', 'EIO'])

/**
 * Runs one attempt to its end: the process exited, or was ended at its limit, and nothing of it is left.
 * @throws only what the file system throws: a fault of the machine
 */
export async function runAlgorithm(request: RunRequest): Promise<RunReport> {
  const started = new Date()
  const clock = performance.now()
  const report = async (partial: Partial<RunReport> & { outcome: Outcome }): Promise<RunReport> => ({
    exitCode: null,
    signal: undefined,
    pid: undefined,
    kill: undefined,
    usage: undefined,
    resultJson: undefined,
    outputs: [],
    skipped: [],
    started,
    ended: new Date(),
    durationSeconds: Math.round(performance.now() - clock) / 1000,
    stderrTail: await readTail(request.workdir.stderr, STDERR_TAIL_BYTES).catch(() => ''),
    ...partial,
  })
  const process_ = await startProcess(request, started)
  if ('outcome' in process_) {
    leaveEmptyStreams(request.workdir)
    return report({ outcome: process_.outcome })
  }
  const { identity, exited, streams, group, file } = process_
  const sampler = startSampling(identity.pid)
  try {
    request.onStarted?.(identity.pid)
    const end = await waitForEnd(request, exited, streams)
    if (end !== undefined) sampler.sample()
    const sampled = sampler.stop()
    const { exitCode, signal, kill } = await conclude(request, identity, exited, end, sampled.processes)
    const notes = group && takeNotes(group, request)
    const usage = usageOf(sampled, notes, clock)
    const base = { exitCode, signal, pid: identity.pid, kill, usage }
    const excess = streamExcess(streams, request.maxOutputBytes)
    await reclaimStreams(request.workdir, streams, request.maxOutputBytes)
    if (end !== undefined) return await report({ ...base, outcome: end })
    const ended = classify(request.algorithm, exitCode, signal)
    const unstarted = group && (await explainExit(request.algorithm, file, exitCode))
    if (unstarted !== undefined) return await report({ ...base, outcome: unstarted })
    const outcome = nameLimit(ended, request.algorithm.limits, usage, sampled.firstCpuSeconds, notes)
    if (outcome.kind !== 'success') return await report({ ...base, outcome })
    // A short run may be over before the first look at its streams.
    if (excess !== undefined) return await report({ ...base, outcome: { kind: 'output_exceeded', detail: excess } })
    return await report({ ...base, ...(await harvest(request)) })
  } finally {
    sampler.stop()
    for (const fd of streams) closeSync(fd)
    const busy = group === undefined ? [] : await removeGroups(identity)
    if (busy.length > 0) request.groups?.tell(`${busy[0]} cannot be removed`)
  }
}

function usageOf({ cpuSeconds, peakMemoryBytes }: Sampled, notes: GroupNotes | undefined, clock: number): Usage {
  const isCounted = notes?.cpuSeconds !== undefined
  return {
    wall_seconds: Math.round(performance.now() - clock) / 1000,
    cpu_seconds: notes?.cpuSeconds ?? cpuSeconds,
    peak_memory_bytes: notes?.peakMemoryBytes ?? peakMemoryBytes,
    method: !isCounted ? 'sampled' : notes.peakMemoryBytes === undefined ? 'cgroup_cpu' : 'cgroup',
  }
}

/** @returns undefined when the run did not come into its group */
export function takeNotes({ path }: Group, { groups, algorithm }: RunRequest): GroupNotes | undefined {
  const notes = readNotes(path)
  if (notes.wasEntered) return notes
  groups?.tell(`a run of ${algorithm.name} could not enter ${path}`)
  return undefined
}

/** With these a shell ends that cannot become the program; the program may, too. */
const EXEC_FAILURES: readonly (number | null)[] = [126, 127]

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

export interface Exit {
  readonly exitCode: number | null
  readonly signal: string | undefined
}

interface StartedProcess {
  readonly identity: RunIdentity
  readonly exited: Promise<Exit>
  /** descriptors of stdout.log and stderr.log */
  readonly streams: readonly [number, number]
  /** undefined: it has none */
  readonly group: Group | undefined
  /** the program */
  readonly file: string
}

async function startProcess(request: RunRequest, started: Date): Promise<StartedProcess | { outcome: Outcome }> {
  const { algorithm, workdir } = request
  const [program = '', ...args] = commandFor(algorithm, {
    ttr: request.ttrSeconds,
    uuid: request.uuid,
    attempt: request.attempt,
  })
  const file = await resolveProgram(algorithm, program, request.environment.PATH ?? '').catch((error: unknown) => {
    if (error instanceof AlgorithmError) return error
    throw error
  })
  if (file instanceof AlgorithmError) return { outcome: { kind: 'not_started', detail: file.message } }
  const barred = algorithm.user && (await accessProblem(algorithm.user, workdir.scratch, file))
  if (barred) return { outcome: { kind: 'not_started', detail: `algorithm ${algorithm.name}: ${barred}` } }
  // From here to the listener in waitForEnd nothing waits: an abort is seen either here or there.
  if (request.signal.aborted) return { outcome: request.signal.reason as RunEnd }
  const mark = `${request.workerId}.${request.uuid}.${request.attempt}.${randomBytes(8).toString('hex')}`
  // The links in /proc, by which stray processes are found, are real paths.
  const realPath = realpathSync(workdir.path)
  const [stdin, ...streams] = openStreams(workdir)
  const group = request.groups?.make(mark, algorithm.restraint?.inGroup)
  const environment = environmentOf(request, mark, started)
  const spawned = spawnProgram(file, args, request, environment, [stdin, ...streams], group)
  closeAll(group === undefined ? [stdin] : [stdin, group.entry])
  const cgroupBase = group && request.groups?.base
  if ('failure' in spawned) {
    closeAll(streams)
    const { code = '', message } = await spawned.failure
    await removeGroups({ pid: 0, mark, cgroupBase })
    if (MACHINE_FAULTS.has(code)) return { outcome: { kind: 'worker_fault', detail: `${file}: ${message}` } }
    const why = (await explainStartFailure(file, code)) ?? message
    return { outcome: { kind: 'not_started', detail: startFailure(algorithm, file, why) } }
  }
  const { pid, exited } = spawned
  const identity = { pid, mark, workdir: realPath, startTicks: startTicksOf(pid), cgroupBase }
  return { identity, exited, streams, group, file }
}

type Streams = readonly [stdin: number, stdout: number, stderr: number]

/** All three or none: what was opened is closed when a later one cannot be. */
function openStreams(workdir: Workdir): Streams {
  const opened: number[] = []
  try {
    opened.push(openSync(workdir.input, 'r'))
    // Appending: several processes of a run may write to one stream, and none shall overwrite another.
    for (const path of [workdir.stdout, workdir.stderr]) opened.push(openSync(path, 'a+', 0o644))
    return opened as unknown as Streams
  } catch (error) {
    closeAll(opened)
    throw error
  }
}

export function closeAll(fds: readonly number[]): void {
  for (const fd of fds) closeSync(fd)
}

type Spawned = { pid: number; exited: Promise<Exit> } | { failure: Promise<NodeJS.ErrnoException> }

/**
 * Node's own spawn: without a free descriptor (EMFILE), execa 9.6 throws before it listens to the child's `error`,
 * which then ends the worker.
 */
function spawnProgram(
  file: string,
  args: string[],
  request: RunRequest,
  env: Record<string, string>,
  stdio: Streams,
  group: Group | undefined,
): Spawned {
  try {
    const { restraint: { standIn = [], launcher = [] } = {}, user } = request.algorithm
    const entry = group === undefined ? standIn : entryLauncher(standIn)
    const [first = file, ...rest] = [...entry, ...launcher, file, ...args]
    const rights = user === undefined ? {} : { uid: user.uid, gid: user.gid }
    // Who opens /dev/stderr anew needs the right to.
    if (user !== undefined) for (const fd of stdio.slice(1)) fchownSync(fd, user.uid, user.gid)
    const handed = group === undefined ? [...stdio] : [...stdio, group.entry]
    const options = { cwd: request.workdir.scratch, env, stdio: handed, detached: true, ...rights }
    const child = spawn(first, rest, options)
    const failure = new Promise<NodeJS.ErrnoException>((resolve) => child.once('error', resolve))
    const { pid } = child
    if (pid === undefined) return { failure }
    const exited = new Promise<Exit>((resolve) =>
      child.once('exit', (exitCode, signal) => resolve({ exitCode, signal: signal ?? undefined })),
    )
    return { pid, exited }
  } catch (error) {
    return { failure: Promise.resolve(error as NodeJS.ErrnoException) }
  }
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

/** Waits until the process exits, or there is a reason to end it. */
async function waitForEnd(
  request: RunRequest,
  exited: Promise<Exit>,
  streams: readonly number[],
): Promise<RunEnd | undefined> {
  let end: (why: RunEnd) => void = () => undefined
  const ended = new Promise<RunEnd>((resolve) => {
    end = resolve
  })
  const onAbort = () => end(request.signal.reason as RunEnd)
  if (request.signal.aborted) onAbort()
  request.signal.addEventListener('abort', onAbort, { once: true })
  // After this turn's exits are heard: where our own loop was held up, a run that ended in time is not late.
  const limit = startTimer(request.limitSeconds * 1000, () =>
    setImmediate(() => end({ kind: 'timed_out', limitSeconds: request.limitSeconds })),
  )
  const streamCheck = setInterval(() => {
    const detail = streamExcess(streams, request.maxOutputBytes)
    if (detail !== undefined) end({ kind: 'output_exceeded', detail })
  }, STREAM_CHECK_MS)
  const stopScratchCheck = watchScratch(request, (detail) => end({ kind: 'output_exceeded', detail }))
  try {
    return await Promise.race([exited.then(() => undefined), ended])
  } finally {
    request.signal.removeEventListener('abort', onAbort)
    limit.clear()
    clearInterval(streamCheck)
    stopScratchCheck()
  }
}

/** setTimeout that is right beyond its own limit of 24.8 days. */
export function startTimer(ms: number, action: () => void): { clear: () => void } {
  const due = performance.now() + ms
  let timer: NodeJS.Timeout
  const arm = () => {
    const left = due - performance.now()
    timer = left > 2 ** 30 ? setTimeout(arm, 2 ** 30) : setTimeout(action, Math.max(0, left))
  }
  arm()
  return { clear: () => clearTimeout(timer) }
}

function streamExcess(streams: readonly number[], maxBytes: number): string | undefined {
  const excess = ['stdout', 'stderr'].find((_, i) => sizeOf(streams[i] as number) > maxBytes)
  return excess === undefined ? undefined : `${excess} grew beyond ${maxBytes} bytes (MAX_OUTPUT)`
}

/** A disk that does not answer must not end the worker from within a timer. */
function sizeOf(fd: number): number {
  try {
    return fstatSync(fd).size
  } catch {
    return 0
  }
}

/**
 * Looks at the scratch directory at most a twentieth of the time, however many files it holds.
 * @param home counts too
 */
export function watchScratch(request: RunRequest, onExcess: (detail: string) => void, home?: string): () => void {
  let timer: NodeJS.Timeout
  let stopped = false
  const look = async () => {
    const began = performance.now()
    const { workdir, maxScratchBytes } = request
    const inHome = home === undefined ? 0 : await directoryBytes(home, maxScratchBytes)
    const bytes = inHome + (await directoryBytes(workdir.scratch, maxScratchBytes))
    if (stopped) return
    if (bytes > maxScratchBytes) onExcess(`the scratch directory grew beyond ${maxScratchBytes} bytes (MAX_SCRATCH)`)
    else timer = setTimeout(look, Math.max(SCRATCH_CHECK_MS, 20 * (performance.now() - began)))
  }
  timer = setTimeout(look, SCRATCH_CHECK_MS)
  return () => {
    stopped = true
    clearTimeout(timer)
  }
}

/** Ends what is still running and gathers how the first process ended. */
async function conclude(
  request: RunRequest,
  identity: RunIdentity,
  exited: Promise<Exit>,
  end: RunEnd | undefined,
  seen: ReadonlyMap<number, number>,
): Promise<Exit & { kill: KillReceipt | undefined }> {
  if (end === undefined) {
    const exit = await exited
    return { ...exit, kill: await sweepLeftovers(identity, { seen }) }
  }
  request.onEnding?.(identity.pid, end.kind)
  const kill = await killTree(identity, { seen })
  // A process that even SIGKILL cannot end (a hung disk) must not hold the slot for ever: the receipt names it.
  if (kill.survivors.includes(identity.pid)) return { exitCode: null, signal: undefined, kill }
  return { ...(await exited), kill }
}

export function classify(algorithm: Algorithm, exitCode: number | null, signal: string | undefined): Outcome {
  if (exitCode === null) return { kind: 'signalled', signal: signal ?? 'an unknown signal' }
  if (exitCode === 0) return { kind: 'success', exitCode: 0 }
  if (exitCode === 65 || algorithm.permanentExits.includes(exitCode)) return { kind: 'rejected', exitCode }
  if (exitCode === 75) return { kind: 'deferred', exitCode: 75 }
  return { kind: 'failed', exitCode }
}

export type Harvest = Pick<RunReport, 'outcome' | 'resultJson' | 'outputs' | 'skipped'>

/** Reads the result and lists the outputs of a run that exited with 0. */
async function harvest(request: RunRequest): Promise<Harvest> {
  const nothing = { resultJson: undefined, outputs: [], skipped: [] }
  const excess = await scratchExcess(request)
  if (excess !== undefined) return { ...nothing, outcome: { kind: 'output_exceeded', detail: excess } }
  const result = await readResult(request.workdir.stdout, request.algorithm.output)
  if ('problem' in result) return { ...nothing, outcome: { kind: 'output_invalid', detail: result.problem } }
  return listOutputs(request, result.json)
}

/** @returns what is wrong, when it is larger than it may be */
export async function scratchExcess({ workdir, maxScratchBytes }: RunRequest): Promise<string | undefined> {
  const bytes = await directoryBytes(workdir.scratch, maxScratchBytes)
  return bytes > maxScratchBytes
    ? `the scratch directory grew beyond ${maxScratchBytes} bytes (MAX_SCRATCH)`
    : undefined
}

/** Makes a success of a result, unless the files beside it are more than may be published. */
export async function listOutputs(request: RunRequest, resultJson: string): Promise<Harvest> {
  const { workdir, algorithm, maxScratchBytes, signal } = request
  const nothing = { resultJson: undefined, outputs: [], skipped: [] }
  const found = await collectOutputs(workdir, algorithm.outputs, { maxBytes: maxScratchBytes, signal })
  if (signal.aborted) return { ...nothing, outcome: signal.reason as RunEnd }
  if ('excess' in found) return { ...nothing, outcome: { kind: 'output_exceeded', detail: found.excess } }
  return { outcome: { kind: 'success', exitCode: 0 }, resultJson, ...found }
}

/** What stdout says, as JSON text. */
async function readResult(path: string, output: Algorithm['output']): Promise<{ json: string } | { problem: string }> {
  const { size } = await stat(path)
  if (size > MAX_RESULT_BYTES) {
    if (output === 'auto') return { json: 'null' }
    return {
      problem: `stdout has ${size} bytes, a result may have ${MAX_RESULT_BYTES}: write large data to a file in the working directory`,
    }
  }
  const bytes = await readFile(path)
  const text = decode(bytes)
  if (output !== 'text' && text !== undefined && isJson(text)) return { json: text }
  if (output === 'json') return { problem: jsonProblem(text, bytes.length) }
  if (output === 'auto' && bytes.length === 0) return { json: 'null' }
  if (text === undefined) return output === 'auto' ? { json: 'null' } : { problem: 'stdout is not UTF-8 text' }
  return { json: output === 'auto' && bytes.length > MAX_TEXT_RESULT_BYTES ? 'null' : JSON.stringify(text) }
}

function decode(bytes: Buffer): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return undefined
  }
}

/** The depth is looked at first: parsing megabytes of brackets takes seconds and a gigabyte, and blocks all slots. */
function isJson(text: string): boolean {
  if (nestingDepth(text) > MAX_RESULT_DEPTH) return false
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

function jsonProblem(text: string | undefined, bytes: number): string {
  if (bytes === 0) return 'stdout is empty, expected one JSON value'
  if (text === undefined) return `stdout (${bytes} bytes) is not UTF-8 text, expected one JSON value`
  if (nestingDepth(text) > MAX_RESULT_DEPTH) return `stdout is nested deeper than ${MAX_RESULT_DEPTH} levels`
  return `stdout (${bytes} bytes) is not one JSON value`
}
