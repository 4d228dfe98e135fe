/**
 * Warm algorithms: a process serves many jobs, one after the other. A slot keeps them (warm-seat.ts), each is handed a
 * line for each job (warm-process.ts, warm-line.ts), and what comes of one is a report like that of any run.
 *
 * Nobody is blamed for what another did: a job that meets a process which is found dead, or busy with an earlier job,
 * is handed once more, to a fresh one, within the same attempt and the same time. A fresh one has no excuse.
 */

import { readdirSync, writeFileSync } from 'node:fs'
import type { Outcome, Usage } from '../job/outcome.ts'
import { explainExit } from './first-process.ts'
import { nameLimit } from './limits.ts'
import {
  classify,
  listOutputs,
  type RunEnd,
  type RunReport,
  type RunRequest,
  STREAM_CHECK_MS,
  scratchExcess,
  startTimer,
  takeNotes,
  watchScratch,
} from './run.ts'
import { type Reading, type Sampled, type Sampler, startSampling } from './usage.ts'
import { encodeJobLine, parseAnswer } from './warm-line.ts'
import type { Reply, WarmProcess } from './warm-process.ts'
import type { WarmWorkdir } from './warm-seat.ts'
import { STDERR_TAIL_BYTES } from './workdir.ts'

export interface WarmRequest extends RunRequest {
  readonly workdir: WarmWorkdir
  readonly payloadJson: string
}

/** Until then a job is not watched: most are over by then. */
const UNWATCHED_MS = 20
/** Of a line that is no answer: for whoever looks for what went wrong. */
const MAX_KEPT_LINE_BYTES = 64 * 2 ** 10

const NOTHING = {
  exitCode: null,
  signal: undefined,
  pid: undefined,
  kill: undefined,
  usage: undefined,
  stdoutTail: '',
  stderrTail: '',
  resultJson: undefined,
  outputs: [],
  skipped: [],
}

type Report = Omit<RunReport, 'started' | 'ended' | 'durationSeconds'>

/**
 * Runs one attempt to its end: the process has answered, or it was ended with all its processes.
 * @throws only what the file system throws: a fault of the machine
 */
export async function runWarm(request: WarmRequest): Promise<RunReport> {
  const started = new Date()
  const clock = performance.now()
  const line = lineOf(request, started)
  for (;;) {
    const report = await tryOnce(request, line, clock)
    if (report === undefined) continue
    const durationSeconds = Math.round(performance.now() - clock) / 1000
    return { ...report, started, ended: new Date(), durationSeconds }
  }
}

function lineOf(request: WarmRequest, started: Date): string {
  const job = {
    uuid: request.uuid,
    type: request.type,
    attempt: request.attempt,
    max_attempts: request.maxAttempts,
    deadline: new Date(started.getTime() + request.limitSeconds * 1000).toISOString(),
    ttr: request.ttrSeconds,
    tube: request.tube,
    priority: request.priority,
    workdir: request.workdir.scratch,
  }
  return encodeJobLine(job, request.payloadJson)
}

/** @returns undefined when the job is to be handed to another process, which will be a fresh one */
async function tryOnce(request: WarmRequest, line: string, clock: number): Promise<Report | undefined> {
  const { seat } = request.workdir
  const process = await seat.getProcess(request)
  if ('outcome' in process) return { ...NOTHING, outcome: process.outcome }
  if (request.signal.aborted) return { ...NOTHING, outcome: request.signal.reason as RunEnd }
  try {
    const report = await serve(request, process, line, clock)
    // No job runs twice at the same time.
    if (report === undefined) await process.end('kill')
    seat.keep(process, request)
    return report
  } catch (error) {
    seat.retire(process, 'kill')
    throw error
  }
}

async function serve(
  request: WarmRequest,
  process: WarmProcess,
  line: string,
  clock: number,
): Promise<Report | undefined> {
  const isFresh = process.served === 0
  const { pid } = process.identity
  const before = process.reading
  const watch = watchJob(request, process, clock)
  request.onStarted?.(pid)
  const came = await Promise.race([process.hand(line), watch.ended])
  const after = process.meter?.read()
  process.reading = after
  const sampled = watch.stop()
  const usage = usageOf(before, after, sampled, clock)
  const verdict = isReply(came) ? await judge(request, process, came, isFresh) : { outcome: came }
  if (verdict === undefined) return undefined
  if (sampled !== undefined) process.seen = sampled.processes
  const ended = await endUnlessGood(request, process, came, verdict)
  const outcome = nameWarmLimit(request, process, verdict.outcome, usage, isReply(came) && came.kind === 'gone')
  const stderrBytes = process.stderrBytes()
  const stderrTail = stderrBytes === 0 ? '' : await takeStderr(request, process)
  const base = { ...NOTHING, ...ended, pid, usage, stderrTail }
  if (outcome.kind !== 'success') {
    request.workdir.isEmpty = isEmptyFolder(request.workdir.scratch)
    completeLogs(request.workdir)
    return { ...base, outcome }
  }
  if (stderrBytes > request.maxOutputBytes) {
    const detail = `stderr grew beyond ${request.maxOutputBytes} bytes (MAX_OUTPUT)`
    const kill = await process.end('kill')
    completeLogs(request.workdir)
    return { ...base, kill, outcome: { kind: 'output_exceeded', detail } }
  }
  const harvested = await harvest(request, verdict.resultJson ?? 'null')
  if (harvested.outcome.kind === 'success') return { ...base, exitCode: 0, ...harvested }
  completeLogs(request.workdir)
  return { ...base, ...harvested }
}

function isReply(came: Reply | RunEnd): came is Reply {
  return came.kind === 'line' || came.kind === 'gone' || came.kind === 'too_long'
}

interface Verdict {
  readonly outcome: Outcome
  readonly resultJson?: string
}

/** @returns undefined when the job is not to blame, and may be handed to another process */
async function judge(
  request: WarmRequest,
  process: WarmProcess,
  reply: Reply,
  isFresh: boolean,
): Promise<Verdict | undefined> {
  const wrong = (what: string): Verdict => ({
    outcome: {
      kind: 'output_invalid',
      detail: `the process ${what}; expected is one line with the uuid of its job and a result or an error`,
    },
  })
  if (reply.kind === 'too_long') return wrong('wrote a line that is longer than a result may be')
  if (reply.kind === 'gone') {
    if (reply.isUnread && !isFresh) return undefined
    if (reply.exit === undefined) return wrong('closed its stdin or stdout and gave no answer')
    const { exitCode, signal } = reply.exit
    const unstarted = isFresh && (await explainExit(request.algorithm, process.file, exitCode))
    if (unstarted) return { outcome: unstarted }
    return exitCode === 0
      ? wrong('ended with 0 and gave no answer')
      : { outcome: classify(request.algorithm, exitCode, signal) }
  }
  const answer = parseAnswer(reply.bytes, request)
  switch (answer.kind) {
    case 'result':
      return { outcome: { kind: 'success', exitCode: 0 }, resultJson: answer.json }
    case 'error':
      return { outcome: { kind: answer.mayRetry ? 'failed' : 'rejected', exitCode: null, error: answer.error } }
    case 'foreign':
      if (!isFresh && process.hadJob(answer.uuid)) return undefined
      break
    case 'invalid':
      break
    default:
      throw new TypeError(`unhandled ${JSON.stringify(answer satisfies never)}`)
  }
  const { workdir } = request
  writeFileSync(workdir.stdout, reply.bytes.subarray(0, MAX_KEPT_LINE_BYTES), { mode: 0o644 })
  workdir.logs.push(['stdout.log', workdir.stdout])
  return wrong(`wrote ${answer.problem}`)
}

/** A process that answered goes on; any other is ended, with a receipt. */
async function endUnlessGood(
  request: WarmRequest,
  process: WarmProcess,
  came: Reply | RunEnd,
  { outcome }: Verdict,
): Promise<Partial<Report>> {
  if (isReply(came) && outcome.kind !== 'output_invalid' && came.kind === 'line') return {}
  if (!isReply(came)) request.onEnding?.(process.identity.pid, came.kind)
  const kill = await process.end('kill')
  const { exitCode = null, signal } = process.exit ?? {}
  return { exitCode, signal, kill }
}

/** Groups count for all jobs of a process: they tell something of this one when the process died of it. */
function nameWarmLimit(
  request: WarmRequest,
  { group }: WarmProcess,
  outcome: Outcome,
  usage: Usage,
  isGone: boolean,
): Outcome {
  const notes = isGone && group !== undefined ? takeNotes(group, request) : undefined
  return nameLimit(outcome, request.algorithm.limits, usage, null, notes)
}

async function takeStderr({ workdir, maxOutputBytes }: WarmRequest, process: WarmProcess): Promise<string> {
  const tail = await process.takeStderr(workdir.stderr, maxOutputBytes, STDERR_TAIL_BYTES)
  workdir.logs.push(['stderr.log', workdir.stderr])
  return tail
}

/** Of a failure both are published: else those of an earlier attempt would stay beside it. */
function completeLogs({ logs, stdout, stderr }: WarmWorkdir): void {
  for (const [name, path] of [
    ['stdout.log', stdout],
    ['stderr.log', stderr],
  ] as const) {
    if (logs.some(([known]) => known === name)) continue
    writeFileSync(path, '', { mode: 0o644 })
    logs.push([name, path])
  }
}

async function harvest(request: WarmRequest, resultJson: string) {
  const { workdir } = request
  workdir.isEmpty = isEmptyFolder(workdir.scratch)
  if (workdir.isEmpty) return { outcome: { kind: 'success', exitCode: 0 } as const, resultJson }
  const excess = await scratchExcess(request)
  if (excess !== undefined) return { outcome: { kind: 'output_exceeded', detail: excess } as const }
  return listOutputs(request, resultJson)
}

/** False also when it cannot be told. */
function isEmptyFolder(path: string): boolean {
  try {
    return readdirSync(path).length === 0
  } catch {
    return false
  }
}

/**
 * From /proc: processor time of the process and of children that it waited for, between two looks; memory at the end, and
 * of its whole tree where the job went on for long enough to be sampled.
 */
function usageOf(
  before: Reading | undefined,
  after: Reading | undefined,
  sampled: Sampled | undefined,
  clock: number,
): Usage {
  const cpuSeconds = after?.cpuSeconds ?? sampled?.cpuSeconds ?? null
  const peak = Math.max(after?.residentBytes ?? 0, sampled?.peakMemoryBytes ?? 0)
  return {
    wall_seconds: roundTo1000ths((performance.now() - clock) / 1000),
    cpu_seconds: cpuSeconds === null ? null : Math.max(0, roundTo1000ths(cpuSeconds - (before?.cpuSeconds ?? 0))),
    peak_memory_bytes: peak === 0 ? null : peak,
    method: 'sampled',
  }
}

function roundTo1000ths(seconds: number): number {
  return Math.round(seconds * 1000) / 1000
}

interface Watch {
  /** why the job is to be ended */
  readonly ended: Promise<RunEnd>
  /** @returns undefined when the job was over too soon to be sampled */
  stop(): Sampled | undefined
}

function watchJob(request: WarmRequest, process: WarmProcess, clock: number): Watch {
  const { signal, limitSeconds, maxOutputBytes } = request
  let end: (why: RunEnd) => void = () => undefined
  const ended = new Promise<RunEnd>((resolve) => {
    end = resolve
  })
  const onAbort = () => end(signal.reason as RunEnd)
  signal.addEventListener('abort', onAbort, { once: true })
  let sampler: Sampler | undefined
  let stopAll = () => {}
  const exceeded = (detail: string) => end({ kind: 'output_exceeded', detail })
  const beginning = setTimeout(() => {
    sampler = startSampling(process.identity.pid, process.served > 1)
    sampler.sample()
    // After this turn's answers are heard: where our own loop was held up, a job that was done in time is not late.
    const limit = startTimer(limitSeconds * 1000 - (performance.now() - clock), () =>
      setImmediate(() => end({ kind: 'timed_out', limitSeconds })),
    )
    const streamCheck = setInterval(() => {
      if (process.stderrBytes() > maxOutputBytes) exceeded(`stderr grew beyond ${maxOutputBytes} bytes (MAX_OUTPUT)`)
    }, STREAM_CHECK_MS)
    const stopScratchCheck = watchScratch(request, exceeded, process.home)
    stopAll = () => {
      limit.clear()
      clearInterval(streamCheck)
      stopScratchCheck()
    }
  }, UNWATCHED_MS)
  const stop = () => {
    signal.removeEventListener('abort', onAbort)
    clearTimeout(beginning)
    stopAll()
    return sampler?.stop()
  }
  return { ended, stop }
}
