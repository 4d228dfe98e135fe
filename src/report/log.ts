/**
 * The worker's log: events as JSON lines (for machines), as short lines (for a terminal), or with `verbose` as the
 * lines that qworker's ancestor printed.
 */

import { destination } from 'pino'
import { reasonOf } from '../job/outcome.ts'
import type { Listener, WorkerEvent } from './events.ts'

/** How an event strikes the reader; what has none is plain. */
export type Tone = 'good' | 'caution' | 'bad' | 'quiet'

export interface LogOptions {
  readonly format: 'text' | 'json'
  readonly level: 'debug' | 'info' | 'warn' | 'error'
  /** the ancestor's lines; only with format text */
  readonly verbose: boolean
  /** where text goes; JSON goes to descriptor 1 */
  readonly write: (text: string) => void
  /** stdout is a file: format json is given to `write` too, which does not wait for its disk */
  readonly isFile?: boolean
  /** gives text its colour; only with format text */
  readonly paint?: (tone: Tone, text: string) => string
}

const LEVEL_RANK = { debug: 0, info: 1, warn: 2, error: 3 }
const MAX_SHOWN = 1000
const MAX_UNWRITTEN_BYTES = 4 * 2 ** 20

/** A listener that writes the log. */
export function makeLog(options: LogOptions): Listener {
  if (options.format === 'json') return makeJsonLog(options.level, options.isFile ? options.write : openStdout())
  const render = options.verbose ? verboseLines : (event: WorkerEvent) => [shortLine(event)]
  return (event) => {
    if (LEVEL_RANK[levelOf(event)] < LEVEL_RANK[options.verbose ? 'debug' : options.level]) return
    const lines = render(event).map(printable)
    if (lines.length > 0) options.write(`${paintLines(event, lines, options.paint).join('\n')}\n`)
  }
}

function openStdout(): (line: string) => void {
  // Synchronous: a line that tells why a process ended must be out before it ends.
  // A reader that does not read must not stop the worker: lines wait here, and beyond the limit they are dropped.
  const out = destination({ dest: 1, sync: true, maxLength: MAX_UNWRITTEN_BYTES, retryEAGAIN: () => false })
  // A reader that went away (EPIPE) must not end the worker.
  out.on('error', () => undefined)
  return (line) => void out.write(line)
}

/** As pino writes them, at half its cost: each job has several. */
function makeJsonLog(least: LogOptions['level'], write: (line: string) => void): Listener {
  return (event) => {
    const level = levelOf(event)
    if (LEVEL_RANK[level] < LEVEL_RANK[least]) return
    // Not one object: a run's own pid comes after the worker's.
    const head = `{"level":"${level}","time":"${isoTime()}","pid":${process.pid},`
    write(`${escapeControls(head + JSON.stringify(forMachines(event)).slice(1))}\n`)
  }
}

/** Of the last line: a busy worker writes hundreds in one second, and only their milliseconds differ. */
let second = { start: Number.NaN, text: '' }

function isoTime(): string {
  const now = Date.now()
  const ms = now % 1000
  if (now - ms !== second.start) second = { start: now - ms, text: new Date(now).toISOString().slice(0, -4) }
  return `${second.text}${String(ms).padStart(3, '0')}Z`
}

/** Field names as in the published documents; contents of jobs stay out of the log. */
function forMachines(event: WorkerEvent): Record<string, unknown> {
  const named: Record<string, unknown> = { event: event.event }
  for (const key in event) if (!LEFT_OUT.has(key)) named[nameOf(key)] = event[key as keyof WorkerEvent]
  if ('outcome' in event) named.outcome = event.outcome.kind
  named.msg = shortLine(event)
  return named
}

const LEFT_OUT: ReadonlySet<string> = new Set(['event', 'outcome', 'payloadJson', 'stdout'])

/** There are some dozens. */
const names = new Map<string, string>()

function nameOf(key: string): string {
  let name = names.get(key)
  if (name === undefined) {
    name = key.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`)
    names.set(key, name)
  }
  return name
}

function levelOf(event: WorkerEvent): 'debug' | 'info' | 'warn' | 'error' {
  switch (event.event) {
    case 'run_started':
      return 'debug'
    case 'worker_cgroup':
      return event.controllers === null ? 'debug' : 'info'
    case 'run_ended':
      return event.outcome.kind === 'success' ? 'info' : 'warn'
    case 'job_settled':
      return event.settlement.action === 'bury' ? 'error' : 'info'
    case 'algorithm_problem':
    case 'broker_lost':
    case 'run_ending':
    case 'reservation_broken':
    case 'reservation_lost':
    case 'outbox_retry':
    case 'worker_recovered':
    case 'worker_problem':
      return 'warn'
    case 'outbox_length':
      return event.length > 0 ? 'warn' : 'info'
    case 'job_refused':
    case 'worker_paused':
    case 'config_refused':
    case 'outbox_failed':
    case 'http_failed':
    case 'publish_failed':
    case 'settle_failed':
    case 'slot_fault':
      return 'error'
    default:
      return 'info'
  }
}

function toneOf(event: WorkerEvent): Tone | undefined {
  if (event.event === 'job_settled') return SETTLEMENT_TONES[event.settlement.action]
  return LEVEL_TONES[levelOf(event)]
}

const LEVEL_TONES = { debug: 'quiet', info: undefined, warn: 'caution', error: 'bad' } as const
const SETTLEMENT_TONES = { delete: 'good', release: 'caution', bury: 'bad', none: 'caution' } as const

/** What happened has the colour; which job it was has none, and what an algorithm printed keeps its own words plain. */
function paintLines(event: WorkerEvent, lines: readonly string[], paint: LogOptions['paint']): readonly string[] {
  const tone = toneOf(event)
  if (paint === undefined || tone === undefined) return lines
  const isOurs = (i: number) => event.event !== 'run_ended' || i === lines.length - 1
  const subject = 'uuid' in event && 'type' in event ? `${event.uuid} ${printable(String(event.type))}: ` : ''
  return lines.map((line, i) => {
    if (!isOurs(i)) return line
    const plain = line.startsWith(subject) ? subject : ''
    return `${plain}${paint(tone, line.slice(plain.length))}`
  })
}

/** One line for each event. */
function shortLine(event: WorkerEvent): string {
  switch (event.event) {
    case 'worker_ready':
      return `worker ${event.worker} ready: ${event.slots} slot${event.slots === 1 ? '' : 's'} on ${event.broker}, tubes ${event.tubes.join(', ')}; algorithms ${event.algorithms.join(', ')}; results at ${event.http ?? 'no HTTP address (HTTP_PORT is off)'}`
    case 'worker_draining':
      return `${event.cause}: taking no more jobs; ${event.running} running may finish within ${event.drainSeconds} s (once more to end them now)`
    case 'worker_interrupting':
      return `${event.cause}: ending ${event.running} running job${event.running === 1 ? '' : 's'} and giving them back to the queue`
    case 'worker_quiet':
      return `${event.cause}: taking no more jobs until SIGCONT; ${event.running} running go on`
    case 'worker_paused':
      return `taking no jobs: ${event.reason}`
    case 'worker_resumed':
      return `${event.cause}: taking jobs again${event.seconds === null ? '' : ` after ${event.seconds} s`}`
    case 'worker_recovered':
      return `worker ${event.worker} died: ${event.attempts} attempt${event.attempts === 1 ? '' : 's'} of it ended${event.survivors.length > 0 ? `; STILL ALIVE: ${event.survivors.join(' ')}` : ', nothing of it is left'}`
    case 'worker_cgroup':
      return cgroupText(event)
    case 'worker_problem':
      return event.problem
    case 'config_read':
      return configText(event)
    case 'config_refused':
      return `the rc file was not taken, the former settings stay: ${event.problems.join('; ')}`
    case 'slot_state':
      return `slot ${event.slot}: ${event.state}${event.uuid === undefined ? '' : `: ${event.uuid} ${event.type}, ${event.step}, in hand for ${event.seconds} s`}`
    case 'worker_stopped':
      return `worker stopped; it settled ${event.settled} reservation${event.settled === 1 ? '' : 's'}`
    case 'http_failed':
      return `HTTP server: a request ended with 500: ${event.error}`
    case 'algorithms_read':
      return `algorithms: ${event.algorithms.join(', ')}`
    case 'algorithm_problem':
      return `algorithm problem: ${event.problem}`
    case 'broker_started':
    case 'broker_found':
    case 'broker_lost':
    case 'broker_back':
      return brokerLine(event)
    case 'reservation_broken':
      return `slot ${event.slot}: ${event.error}; the run goes on while ticket ${event.ticket} is taken back`
    case 'reservation_regained':
      return `slot ${event.slot}: ticket ${event.ticket} was taken back after ${event.seconds} s`
    case 'reservation_lost':
      return `slot ${event.slot}: ticket ${event.ticket}: ${event.error}; what its run comes to is discarded`
    case 'job_busy':
      return `${event.uuid} ${event.type}: is in the hands of ${event.worker}; given back`
    case 'outbox_length':
    case 'outbox_retry':
    case 'outbox_resumed':
    case 'outbox_failed':
      return outboxLine(event)
    default:
      return jobLine(event)
  }
}

type BrokerEvent = Extract<WorkerEvent, { event: `broker_${string}` }>

function brokerLine(event: BrokerEvent): string {
  switch (event.event) {
    case 'broker_started':
      return `embedded broker on ${event.broker}: ${event.jobs} job${event.jobs === 1 ? '' : 's'} in its journal${event.tornBytes === 0 ? '' : `; the last ${event.tornBytes} bytes were not whole and are set aside beside it`}`
    case 'broker_found':
      return `a broker answers at ${event.broker} already; this worker becomes the broker when that one ends`
    case 'broker_lost':
      if ('server' in event) return `${event.error}; trying again, and taking the jobs of the other servers meanwhile`
      return `slot ${event.slot}: ${event.error}; trying again`
    case 'broker_back':
      if ('server' in event) return `server ${event.server} is back after ${event.seconds} s`
      return `slot ${event.slot}: connected to the broker again`
  }
}

type OutboxEvent = Extract<WorkerEvent, { event: `outbox_${string}` }>

function outboxLine(event: OutboxEvent): string {
  switch (event.event) {
    case 'outbox_length':
      return event.length === 0
        ? 'S3 has everything'
        : `${event.length} job${event.length === 1 ? '' : 's'} to be copied to S3, the oldest since ${event.oldest}`
    case 'outbox_retry':
      return `${event.uuid}: not copied to S3 (try ${event.tries}): ${event.error}`
    case 'outbox_resumed':
      return `S3 answers again after ${event.seconds} s`
    case 'outbox_failed':
      return `outbox: ${event.error}`
  }
}

type JobEvent = Extract<
  WorkerEvent,
  {
    event: `job_${'dequeued' | 'refused' | 'already_complete' | 'published' | 'settled'}` | `run_${string}`
  }
>

function jobLine(
  event: JobEvent | Extract<WorkerEvent, { event: 'publish_failed' | 'settle_failed' | 'slot_fault' }>,
): string {
  switch (event.event) {
    case 'job_dequeued':
      return `${event.uuid} ${event.type}: attempt ${event.attempt} of ${event.maxAttempts} begins`
    case 'job_refused':
      return `${event.uuid ?? `ticket ${event.ticket}`}: buried: ${event.error}`
    case 'job_already_complete':
      return `${event.uuid} ${event.type}: is complete already, removing from queue`
    case 'run_started':
      return `${event.uuid} ${event.type}: process ${event.pid}`
    case 'run_ending':
      return `${event.uuid} ${event.type}: ending process tree ${event.pid} (${event.why})`
    case 'run_ended':
      return `${event.uuid} ${event.type}: attempt ${event.attempt} ended after ${event.durationSeconds} s: ${event.error ?? 'exit 0'}${event.survivors.length > 0 ? `; STILL ALIVE: ${event.survivors.join(' ')}` : ''}`
    case 'job_published':
      return `${event.uuid} ${event.type}: published at ${event.url}`
    case 'publish_failed':
      return `${event.uuid ?? `ticket ${event.ticket}`}: cannot publish (${event.store}): ${event.error}`
    case 'job_settled':
      return `${event.uuid} ${event.type}: ${settlementText(event)}`
    case 'settle_failed':
      return `${event.uuid ?? `ticket ${event.ticket}`}: cannot ${event.action}: ${event.error}`
    case 'slot_fault':
      return `slot ${event.slot}: ${event.error}; trying again in ${event.retrySeconds} s`
    default:
      return unreachable(event)
  }
}

function configText(event: Extract<WorkerEvent, { event: 'config_read' }>): string {
  const changed = event.changed.length === 0 ? 'nothing changed' : `changed: ${event.changed.join(', ')}`
  return `read the rc file again; ${changed}${event.needRestart.length === 0 ? '' : `; only a restart changes: ${event.needRestart.join(', ')}`}`
}

function cgroupText({ controllers, why }: Extract<WorkerEvent, { event: 'worker_cgroup' }>): string {
  if (controllers === null) return `runs have no control groups: ${why}`
  return `each run has a control group (cgroup v2), with ${controllers.join(', ') || 'no'} controllers`
}

function settlementText(event: Extract<WorkerEvent, { event: 'job_settled' }>): string {
  const { settlement } = event
  switch (settlement.action) {
    case 'delete':
      return 'complete, removed from queue'
    case 'release':
      return `released, next attempt in ${settlement.delaySeconds} s`
    case 'bury':
      return `buried: ${settlement.reason}`
    case 'none':
      return 'left alone: the reservation is no longer ours'
    default:
      return unreachable(settlement)
  }
}

/** The ancestor's lines; where it had none, the short one. */
function verboseLines(event: WorkerEvent): string[] {
  switch (event.event) {
    case 'job_dequeued':
      return [
        '',
        `### Dequeued job ${event.uuid}, algorithm ${event.type}`,
        ` + result directory: ${event.directory}`,
        ` + input data: ${shown(event.payloadJson)}`,
        ` + time left for processing: ${event.secondsLeft}`,
        ` + job queue priority: ${event.priority}`,
      ]
    case 'run_ending':
      return event.why === 'timed_out'
        ? ['Algorithm did not terminate within expected timeframe.', `Attempting to kill algorithm PID ${event.pid}`]
        : [`Attempting to kill algorithm PID ${event.pid} (${event.why})`]
    case 'run_ended':
      return endLines(event)
    case 'job_settled':
      switch (event.settlement.action) {
        case 'delete':
          return ['Job completed, removing from queue.']
        case 'release':
          return ['Job failed, leaving job in queue.', `Next attempt in ${event.settlement.delaySeconds} s.`]
        case 'bury':
          return [`Job failed, burying it: ${event.settlement.reason}`]
        default:
          return [shortLine(event)]
      }
    case 'settle_failed':
      return event.gone && event.action === 'release'
        ? ['Job not found, cannot release it. Ignoring.']
        : [shortLine(event)]
    case 'job_refused':
      return event.outcome.kind === 'unknown_type'
        ? [`Unknown job type: ${event.type} - burying job: ${reasonOf(event.outcome)}`]
        : [shortLine(event)]
    case 'slot_fault':
      return event.uuid === undefined ? [shortLine(event)] : [unexpectedLine(event.error)]
    case 'publish_failed':
      return [unexpectedLine(event.error)]
    case 'run_started':
      return []
    default:
      return [shortLine(event)]
  }
}

function unexpectedLine(error: string): string {
  return `Unexpected problem during job execution: ${error} - Releasing job.`
}

function endLines(event: Extract<WorkerEvent, { event: 'run_ended' }>): string[] {
  const output = event.stdout === '' ? [] : event.stdout.replace(/\n$/, '').split(/\r?\n/)
  if (
    event.exitCode !== null &&
    event.outcome.kind !== 'timed_out' &&
    event.outcome.kind !== 'interrupted' &&
    event.outcome.kind !== 'lost'
  ) {
    const end = [
      'Algorithm terminated within expected time constraints.',
      `Algorithm terminated with exitstatus ${event.exitCode}`,
    ]
    return ['output_invalid', 'output_exceeded', 'limit_exceeded'].includes(event.outcome.kind)
      ? [...output, ...end, `Algorithm failed: ${event.error}`]
      : [...output, ...end]
  }
  return [...output, `Algorithm ended: ${event.error}`]
}

/** Controls (C0, C1), line ends, and marks that turn the direction of writing, which Unicode hides among letters. */
const CONTROLS = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g

/** Text from outside must not steer the terminal, nor pretend to be a line of ours. */
function printable(line: string): string {
  return line.replace(CONTROLS, '?')
}

/** The same document: JSON escapes C0 by itself, and leaves the others as they are. */
function escapeControls(json: string): string {
  return json.replace(CONTROLS, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

function shown(json: string): string {
  return json.length <= MAX_SHOWN ? json : `${json.slice(0, MAX_SHOWN)}... (${json.length} characters)`
}

function unreachable(value: never): never {
  throw new TypeError(`unhandled case ${JSON.stringify(value)}`)
}
