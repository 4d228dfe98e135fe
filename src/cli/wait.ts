/**
 * Follows one job to its end, from outside: by its result URL and by the broker.
 *
 * The HTTP server of the worker is the one that knows the end. The broker only tells whether an end can still come: a
 * job that it no longer has, or has buried, and that the server does not know, ran where we do not look. Publication
 * comes before settlement, so that answer is final but for a race of a few seconds.
 */

import { constants } from 'node:os'
import { describe } from '../job/package.ts'
import { parseStatus, type StatusDocument } from '../job/result.ts'
import { QueueError, type TicketState } from '../queue/queue.ts'
import { EXIT, SIGNAL_BASE } from './exit.ts'

export interface Pace {
  /** between the first polls; it grows to `slowMs`, or to what the server asks for with Retry-After */
  readonly quickMs: number
  readonly slowMs: number
  readonly retryAfterMaxMs: number
  readonly requestMs: number
  /** how long an end that the broker tells may be missing on the server */
  readonly raceMs: number
  /** the same while the server calls the job queued or running */
  readonly staleMs: number
  /** how long neither broker nor server need answer */
  readonly darkMs: number
  /** between questions to the broker while the server calls the job queued or running */
  readonly brokerMs: number
}

const PACE: Pace = {
  quickMs: 100,
  slowMs: 2_000,
  retryAfterMaxMs: 10_000,
  requestMs: 10_000,
  raceMs: 3_000,
  staleMs: 30_000,
  darkMs: 60_000,
  brokerMs: 5_000,
}

export interface WaitOptions {
  readonly uuid: string
  readonly url: string
  /** what the broker knows of the job; throws QueueError when it cannot be asked */
  readonly ticketState: () => Promise<TicketState>
  readonly timeoutSeconds?: number | undefined
  readonly signal?: AbortSignal
  /** something that the user should know, once */
  readonly warn: (message: string) => void
  /** one line that is true now, for a terminal */
  readonly show: (line: string) => void
  readonly pace?: Partial<Pace>
}

export type WaitEnd =
  /** `text` is the result document as received */
  | { readonly kind: 'complete'; readonly text: string }
  | { readonly kind: 'failed'; readonly text: string; readonly status: StatusDocument }
  /** it ended, and its end is not told at the URL; or nothing can be asked any more */
  | { readonly kind: 'unknown'; readonly message: string }
  | { readonly kind: 'timed_out' }
  | { readonly kind: 'interrupted' }

/** What the server says of the job. */
type Answer =
  | { readonly kind: 'complete'; readonly text: string }
  | { readonly kind: 'failed'; readonly text: string; readonly status: StatusDocument }
  | { readonly kind: 'pending'; readonly status: StatusDocument | undefined; readonly retryAfterMs: number | undefined }
  | { readonly kind: 'expired' }
  /** the server is no help: `detail` completes "<url> ..." */
  | { readonly kind: 'no_help'; readonly detail: string }

type BrokerState = TicketState | 'unreachable'

export async function waitForEnd(options: WaitOptions): Promise<WaitEnd> {
  const watch = new Watch(options)
  for (;;) {
    if (options.signal?.aborted) return { kind: 'interrupted' }
    if (watch.remainingMs() <= 0) return { kind: 'timed_out' }
    const answer = await askServer(options, Math.min(watch.pace.requestMs, watch.remainingMs()), options.signal)
    // A request that the end of our time cut off tells nothing about the server.
    if (options.signal?.aborted || (answer.kind === 'no_help' && watch.remainingMs() <= 0)) continue
    switch (answer.kind) {
      case 'complete':
      case 'failed':
        return answer
      case 'expired':
        return { kind: 'unknown', message: `the result of job ${options.uuid} has expired at ${options.url}` }
      case 'pending': {
        const end = await watch.pending(answer.status)
        if (end) return end
        await watch.pause(answer.retryAfterMs)
        break
      }
      case 'no_help': {
        const end = await watch.withoutServer(answer.detail)
        if (end) return end
        await watch.pause(undefined)
        break
      }
      default:
        answer satisfies never
    }
  }
}

/** The clocks of one wait. */
class Watch {
  readonly pace: Pace
  readonly #options: WaitOptions
  readonly #startedMs = performance.now()
  #pauseMs: number
  #endedSinceMs: number | undefined
  #darkSinceMs: number | undefined
  #brokerAskedMs = Number.NEGATIVE_INFINITY
  #warned = false

  constructor(options: WaitOptions) {
    this.#options = options
    this.pace = { ...PACE, ...options.pace }
    this.#pauseMs = this.pace.quickMs
  }

  remainingMs(): number {
    const limit = this.#options.timeoutSeconds
    return limit === undefined ? Number.POSITIVE_INFINITY : limit * 1000 - (performance.now() - this.#startedMs)
  }

  /** The server calls the job queued or running: true, unless the broker has not had it for long. */
  async pending(status: StatusDocument | undefined): Promise<WaitEnd | undefined> {
    this.#darkSinceMs = undefined
    const attempt = (status?.attempts.length ?? 0) + 1
    this.#show(status?.state ?? 'queued', attempt > 1 || status?.state === 'running' ? `attempt ${attempt}` : undefined)
    const now = performance.now()
    if (now - this.#brokerAskedMs < this.pace.brokerMs) return undefined
    this.#brokerAskedMs = now
    const state = await this.#askBroker()
    if (!this.#hasEnded(state, this.pace.staleMs)) return undefined
    const { url, uuid } = this.#options
    return {
      kind: 'unknown',
      message: `${nameEnd(state)} job ${uuid}, but ${url} still calls it ${status?.state ?? 'queued'}: was it deleted by hand, or did another worker run it? See that worker's log`,
    }
  }

  /** The server does not help: the broker tells whether waiting makes sense. */
  async withoutServer(detail: string): Promise<WaitEnd | undefined> {
    const { url, uuid, warn } = this.#options
    const state = await this.#askBroker()
    if (state === 'unreachable') {
      const now = performance.now()
      this.#darkSinceMs ??= now
      this.#show('unknown', 'neither the broker nor the result server helps')
      if (now - this.#darkSinceMs < this.pace.darkMs) return undefined
      return { kind: 'unknown', message: `${url} ${detail}, and the broker cannot be asked: job ${uuid} may go on` }
    }
    this.#darkSinceMs = undefined
    if (this.#hasEnded(state, this.pace.raceMs)) {
      return {
        kind: 'unknown',
        message: `${nameEnd(state)} job ${uuid}, but ${url} ${detail}: set RESULT_BASEURL to the HTTP server of the worker that ran it, or look in its RESULT_BASEDIR or bucket`,
      }
    }
    if (!this.#warned && !detail.includes('404')) {
      this.#warned = true
      warn(
        `${url} ${detail}; the broker calls the job ${state}, so I wait. Is qworker running, and is RESULT_BASEURL its address?`,
      )
    }
    this.#show(state === 'ready' ? 'queued' : state === 'reserved' ? 'running' : state, undefined)
    return undefined
  }

  async pause(retryAfterMs: number | undefined): Promise<void> {
    const { quickMs, slowMs, retryAfterMaxMs } = this.pace
    const ceilingMs = retryAfterMs === undefined ? slowMs : Math.min(Math.max(retryAfterMs, quickMs), retryAfterMaxMs)
    const ms = Math.min(this.#pauseMs, ceilingMs)
    this.#pauseMs = Math.min(this.#pauseMs * 1.5, Math.max(slowMs, retryAfterMaxMs))
    await sleep(Math.min(ms, Math.max(this.remainingMs(), 0)), this.#options.signal)
  }

  async #askBroker(): Promise<BrokerState> {
    try {
      return await this.#options.ticketState()
    } catch (error) {
      if (error instanceof QueueError) return 'unreachable'
      throw error
    }
  }

  /** True once the broker has told an end for `patienceMs` without a break. */
  #hasEnded(state: BrokerState, patienceMs: number): boolean {
    if (state !== 'gone' && state !== 'buried') {
      this.#endedSinceMs = undefined
      return false
    }
    const now = performance.now()
    this.#endedSinceMs ??= now
    return now - this.#endedSinceMs >= patienceMs
  }

  #show(state: string, detail: string | undefined): void {
    const seconds = Math.floor((performance.now() - this.#startedMs) / 1000)
    this.#options.show([describe(state).slice(1, -1), detail, `${seconds} s`].filter(Boolean).join(', '))
  }
}

function nameEnd(state: BrokerState): string {
  return state === 'buried' ? 'the broker has buried' : 'the broker no longer has'
}

async function askServer(options: WaitOptions, limitMs: number, signal: AbortSignal | undefined): Promise<Answer> {
  // Not AbortSignal.any: it holds on to each of its products as long as the long-lived signal lives.
  const request = new AbortController()
  const abort = () => request.abort()
  const timer = setTimeout(abort, limitMs)
  signal?.addEventListener('abort', abort, { once: true })
  try {
    const response = await fetch(options.url, { signal: request.signal, headers: { accept: 'application/json' } })
    return readAnswer(response.status, response.headers.get('retry-after'), await readText(response), options.uuid)
  } catch (error) {
    return { kind: 'no_help', detail: `cannot be reached (${describeFetchError(error)})` }
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  }
}

/** No more than a result document can have: what answers may be anything, without an end. */
const MAX_ANSWER_BYTES = 64 * 2 ** 20

async function readText(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length
    if (bytes > MAX_ANSWER_BYTES) throw new Error(`its answer is longer than ${MAX_ANSWER_BYTES} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

function readAnswer(httpStatus: number, retryAfter: string | null, text: string, uuid: string): Answer {
  const status = parseStatus(text)
  switch (httpStatus) {
    case 200:
      if (isResultOf(text, uuid)) return { kind: 'complete', text }
      return { kind: 'no_help', detail: 'answers 200, but not with the result of this job' }
    case 202:
      return { kind: 'pending', status, retryAfterMs: readRetryAfter(retryAfter) }
    case 422:
      if (status?.uuid === uuid) return { kind: 'failed', text, status }
      return { kind: 'no_help', detail: 'answers 422, but not with the status of this job' }
    case 410:
      return { kind: 'expired' }
    case 404:
      return { kind: 'no_help', detail: 'answers 404' }
    default:
      return { kind: 'no_help', detail: `answers ${httpStatus}` }
  }
}

function isResultOf(text: string, uuid: string): boolean {
  try {
    const value = JSON.parse(text) as { uuid?: unknown } | null
    return value?.uuid === uuid
  } catch {
    return false
  }
}

function readRetryAfter(header: string | null): number | undefined {
  return header !== null && /^\d{1,6}$/.test(header) ? Number(header) * 1000 : undefined
}

function describeFetchError(error: unknown): string {
  if (error instanceof Error && error.name === 'AbortError') return 'no answer in time'
  const cause = error instanceof Error ? (error.cause as NodeJS.ErrnoException | undefined) : undefined
  switch (cause?.code) {
    case 'ECONNREFUSED':
      return 'connection refused'
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return 'host not found'
    default:
      return cause?.code ?? cause?.message ?? String(error)
  }
}

function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve()
    const done = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', done)
      resolve()
    }
    const timer = setTimeout(done, ms)
    signal?.addEventListener('abort', done, { once: true })
  })
}

/** The exit code that tells how a failed job's last attempt ended: its own, 128 + signal, 124 for its time, else 1. */
export function exitCodeOf(status: StatusDocument): number {
  const last = status.attempts.at(-1)
  if (last === undefined) return EXIT.failed
  if (last.outcome === 'timed_out') return EXIT.timedOut
  if (Number.isInteger(last.exit_code) && last.exit_code !== 0) return (last.exit_code as number) & 255
  const signal = (constants.signals as Record<string, number | undefined>)[last.signal ?? '']
  return signal === undefined ? EXIT.failed : SIGNAL_BASE + signal
}

/** The text of one member of a JSON object that is known to be well formed: numbers keep all their digits. */
export function memberText(json: string, name: string): string | undefined {
  let depth = 0
  let key = ''
  let start = -1
  for (let i = 0; i < json.length; i++) {
    const c = json[i]
    if (c === '"') {
      const open = i
      for (i++; json[i] !== '"' && i < json.length; i++) if (json[i] === '\\') i++
      if (depth === 1 && start < 0) key = JSON.parse(json.slice(open, i + 1)) as string
    } else if (c === ':' && depth === 1 && start < 0) {
      start = i + 1
    } else if (c === '{' || c === '[') {
      depth++
    } else if (c === '}' || c === ']' || (c === ',' && depth === 1)) {
      if (depth === 1 && start >= 0 && key === name) return json.slice(start, i).trim()
      if (depth === 1) start = -1
      if (c !== ',') depth--
    }
  }
  return undefined
}

export interface ToldEnd {
  readonly exitCode: number
  /** for stdout, as received; absent when there is none */
  readonly document: string | undefined
  /** one line for stderr */
  readonly message: string | undefined
  /** members of a JSON object, without braces */
  readonly jsonMembers: string
}

/** How an end is told to people, to `--json`, and to the shell. */
/** The last line of stderr: most programs tell there what went wrong. */
function lastWords(stderrTail: string | undefined): string {
  const line = stderrTail?.trim().split('\n').at(-1) ?? ''
  return line === '' ? '' : `\n${line.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?').slice(0, 500)}`
}

export function describeEnd(end: WaitEnd, url: string): ToldEnd {
  const members = (state: string, exitCode: number | null, rest: string) =>
    `"state":${JSON.stringify(state)},"exit_code":${exitCode},${rest}`
  const without = (exitCode: number, message: string): ToldEnd => ({
    exitCode,
    document: undefined,
    message,
    jsonMembers: members('unknown', null, `"reason":${JSON.stringify(message)}`),
  })
  switch (end.kind) {
    case 'complete': {
      const parts = ['attempt', 'timestamp', 'duration_seconds', 'result', 'files'].map(
        (name) => `${JSON.stringify(name)}:${memberText(end.text, name) ?? 'null'}`,
      )
      return {
        exitCode: EXIT.ok,
        document: end.text,
        message: undefined,
        jsonMembers: members('complete', 0, parts.join(',')),
      }
    }
    case 'failed': {
      const { status } = end
      const last = status.attempts.at(-1)
      const reason = status.reason ?? last?.error ?? 'no reason is told'
      return {
        exitCode: exitCodeOf(status),
        document: end.text,
        message: `job ${status.uuid} is ${status.state} after ${status.attempts.length} attempt${status.attempts.length === 1 ? '' : 's'}: ${reason}${lastWords(last?.stderr_tail)}`,
        jsonMembers: members(
          status.state,
          last?.exit_code ?? null,
          `"reason":${JSON.stringify(reason)},"status":${JSON.stringify(status)}`,
        ),
      }
    }
    case 'unknown':
      return without(EXIT.unavailable, end.message)
    case 'timed_out':
      return without(EXIT.timedOut, `the time of --timeout is over; the job goes on, its result will be at ${url}`)
    case 'interrupted':
      return without(EXIT.interrupted, `interrupted; the job goes on, its result will be at ${url}`)
    default:
      return end satisfies never
  }
}
