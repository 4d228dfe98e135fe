/** `qproducer --batch`: a job for each line of a file or of stdin, told as it goes and accounted for at the end. */

import { createReadStream, open, read } from 'node:fs'
import { stat } from 'node:fs/promises'
import { Socket } from 'node:net'
import { basename } from 'node:path'
import { promisify } from 'node:util'
import { type AcceptedJob, type BatchAccount, type BatchFailureKind, submitBatch } from '../batch/batch.ts'
import { splitLines } from '../batch/lines.ts'
import type { HeaderDefaults } from '../producer.ts'
import type { PutOptions, PutQueue } from '../queue/queue.ts'
import { complain, EXIT, endWithError, outputDrained, writeOut } from './exit.ts'
import { quote } from './invocation.ts'

const PROGRAM = 'qproducer'
const BAR_WIDTH = 24
const PROGRESS_MS = 100
const CHUNK_BYTES = 2 ** 17

export interface BatchOrder {
  /** a file, or `-` for stdin */
  readonly source: string
  readonly put: PutOptions
  readonly defaults: HeaderDefaults
  readonly json: boolean
  readonly verbose: boolean
  /** RESULT_BASEURL */
  readonly baseUrl: string
  /** arguments of the program, to tell the command that goes on after a failure */
  readonly argv: readonly string[]
}

/** Where the lines come from. */
export interface BatchSource {
  readonly canSeek: boolean
  /** @param offset 0 where it cannot seek, and that once */
  readFrom(offset: number): AsyncIterable<Uint8Array>
  /** undefined for a pipe */
  readonly bytes: number | undefined
}

/** Opens the source before the broker is asked: a file that is not there ends the program. */
export async function openBatchSource(source: string): Promise<BatchSource> {
  if (source === '-') return { canSeek: false, readFrom: () => process.stdin, bytes: undefined }
  try {
    const file = await stat(source)
    if (file.isDirectory())
      endWithError(PROGRAM, EXIT.noInput, `--batch ${source}: is a directory; give a file, or - for stdin`)
    const fd = await promisify(open)(source, 'r')
    if (file.isFile()) return { canSeek: true, readFrom: (offset) => readFile(fd, offset), bytes: file.size }
    // A read of a pipe that waits in fs's thread pool would keep the program from ending; a socket's read does not.
    const readFrom = () => (file.isFIFO() ? new Socket({ fd, writable: false }) : createReadStream(source, { fd }))
    return { canSeek: false, readFrom, bytes: undefined }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const reason = code === 'ENOENT' || code === 'ENOTDIR' ? 'no such file' : `cannot be read (${code})`
    return endWithError(
      PROGRAM,
      EXIT.noInput,
      `--batch ${source}: ${reason}; give a file with one job a line, or - for stdin`,
    )
  }
}

const readAt = promisify(read)

/** A stream would close the descriptor at its end, and is read from one place only. */
async function* readFile(fd: number, offset: number): AsyncGenerator<Uint8Array> {
  for (let at = offset; ; ) {
    const { bytesRead, buffer } = await readAt(fd, Buffer.allocUnsafe(CHUNK_BYTES), 0, CHUNK_BYTES, at)
    if (bytesRead === 0) return
    yield buffer.subarray(0, bytesRead)
    at += bytesRead
  }
}

/** @returns the exit code */
export async function runBatch(queue: PutQueue, source: BatchSource, order: BatchOrder): Promise<number> {
  const progress = new Progress(source.bytes)
  const account = await submitBatch(queue, splitLines(meter(source.readFrom(0), progress)), {
    put: order.put,
    defaults: order.defaults,
    signal: interruptSignal(),
    onAccepted: (jobs) => tellAccepted(jobs, progress, order),
  })
  await report(account, makeRate(account, progress.end()), order)
  return account.failed === undefined ? EXIT.ok : FAILURE_EXIT[account.failed.kind]
}

/** Of the first Ctrl-C; a second one ends the program in the usual way. */
export function interruptSignal(): AbortSignal {
  const interrupt = new AbortController()
  process.once('SIGINT', () => interrupt.abort())
  return interrupt.signal
}

export function tellAccepted(jobs: readonly AcceptedJob[], progress: Progress, order: BatchOrder): void {
  progress.accepted(jobs.length)
  if (order.json || order.verbose) void writeOut(jobs.map((job) => describeJob(job, order)).join(''))
}

export const FAILURE_EXIT: Record<BatchFailureKind, number> = {
  line: EXIT.data,
  broker: EXIT.unavailable,
  input: EXIT.ioError,
  interrupted: EXIT.interrupted,
  state: EXIT.ioError,
}

/** Counts what is read, and reads no faster than our own output is taken. */
export async function* meter(chunks: AsyncIterable<Uint8Array>, progress: Progress): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    progress.read(chunk.length)
    yield chunk
    await outputDrained()
  }
}

function describeJob({ line, uuid, type, ticket, bytes }: AcceptedJob, order: BatchOrder): string {
  const url = `${order.baseUrl}/${uuid}`
  if (order.json) return `${JSON.stringify({ line, uuid, type, ticket, bytes, url })}\n`
  return `line ${line}: ${uuid} ${type}, ticket ${ticket}, result URL: ${url}\n`
}

export interface Rate {
  readonly seconds: number
  readonly perSecond: number
}

export function makeRate({ accepted }: BatchAccount, seconds: number): Rate {
  return { seconds, perSecond: Math.round(accepted / Math.max(seconds, 0.001)) }
}

async function report(account: BatchAccount, rate: Rate, order: BatchOrder): Promise<void> {
  if (order.json) await writeOut(`${JSON.stringify(makeJsonAccount(account, rate))}\n`)
  else await writeOut(describeEnd(account, rate))
  if (account.failed !== undefined) complain(PROGRAM, describeFailure(account, order))
}

export function describeEnd(account: BatchAccount, { seconds, perSecond }: Rate): string {
  return `${describeCount(account)} in ${seconds.toFixed(2)} s (${perSecond}/s)\n`
}

export function makeJsonAccount(account: BatchAccount, { seconds, perSecond }: Rate): object {
  const { accepted, firstLine, lastLine, failed, unanswered, refusedLines, nextLine } = account
  return {
    accepted,
    first_line: firstLine ?? null,
    last_line: lastLine ?? null,
    failed: failed === undefined ? null : { line: failed.line, message: failed.message },
    unanswered: unanswered === undefined ? null : makeJsonUnanswered(unanswered),
    refused_lines: refusedLines,
    next_line: nextLine,
    seconds: Math.round(seconds * 1000) / 1000,
    jobs_per_second: perSecond,
  }
}

function makeJsonUnanswered({ fromLine, toLine, accepted }: NonNullable<BatchAccount['unanswered']>): object {
  const except = accepted.length === 0 ? {} : { accepted_lines: accepted }
  return { from_line: fromLine, to_line: toLine, ...except }
}

export function describeCount({ accepted, firstLine, lastLine }: BatchAccount): string {
  const jobs = `accepted ${accepted} ${accepted === 1 ? 'job' : 'jobs'}`
  return firstLine === undefined ? jobs : `${jobs} from lines ${firstLine} to ${lastLine}`
}

export function describeFailedLine({ failed }: BatchAccount, { source }: BatchOrder): string {
  return `${source === '-' ? 'stdin' : basename(source)}, line ${failed?.line}: ${failed?.message}`
}

/** Where it failed, what was accepted, what is not known, and the command that goes on. */
function describeFailure(account: BatchAccount, order: BatchOrder): string {
  const { failed, unanswered, refusedLines, nextLine } = account
  const lines = [describeFailedLine(account, order), describeCount(account)]
  if (unanswered !== undefined) {
    const { fromLine, toLine, accepted } = unanswered
    const except = accepted.length === 0 ? '' : ` (but for ${accepted.join(', ')}, which are accepted)`
    lines.push(
      `lines ${fromLine} to ${toLine} were sent and not answered${except}: they may or may not be in the queue`,
      `to send them again (a job without a uuid of its own may then run twice): ${continuation(fromLine, order)}`,
      `to go on after them: ${continuation(nextLine, order)}`,
    )
  } else {
    const repaired = failed?.kind === 'line' ? ' when that line is corrected' : ''
    lines.push(`to go on${repaired}: ${continuation(nextLine, order)}`)
  }
  if (refusedLines.length > 0)
    lines.push(`lines refused before that: ${refusedLines.join(', ')}; send these again, too`)
  return lines.join('\n')
}

function continuation(line: number, order: BatchOrder): string {
  const at = order.argv.indexOf('--batch')
  const argv = order.argv.map((arg, i) => (i === at + 1 && at >= 0 ? '-' : arg.replace(/^--batch=.*$/s, '--batch=-')))
  const source = order.source === '-' ? '' : ` ${quote(order.source)}`
  return `tail -n +${line}${source} | ${[PROGRAM, ...argv].map(quote).join(' ')}`
}

/** One line on stderr that is drawn anew, only on a terminal. */
export class Progress {
  readonly #totalBytes: number | undefined
  readonly #startedMs = performance.now()
  readonly #onTerminal = process.stderr.isTTY === true
  #readBytes: number
  #jobs = 0
  #drawnMs = 0
  #addition = ''

  constructor(totalBytes: number | undefined, readBytes = 0) {
    this.#totalBytes = totalBytes
    this.#readBytes = readBytes
  }

  read(bytes: number): void {
    this.#readBytes += bytes
    this.#draw()
  }

  accepted(jobs: number): void {
    this.#jobs += jobs
    this.#draw()
  }

  /** Something that is true now, behind the rest. */
  add(text: string): void {
    this.#addition = text
    this.#draw()
  }

  /** @returns seconds since the start */
  end(): number {
    if (this.#onTerminal) process.stderr.write('\r\x1b[2K')
    return (performance.now() - this.#startedMs) / 1000
  }

  #draw(): void {
    if (!this.#onTerminal) return
    const now = performance.now()
    if (now - this.#drawnMs < PROGRESS_MS) return
    this.#drawnMs = now
    const rate = Math.round(this.#jobs / Math.max((now - this.#startedMs) / 1000, 0.001))
    process.stderr.write(
      `\r\x1b[2K${makeBar(this.#readBytes, this.#totalBytes)}${this.#jobs} jobs, ${rate}/s${this.#addition}`,
    )
  }
}

function makeBar(bytes: number, totalBytes: number | undefined): string {
  if (totalBytes === undefined || totalBytes === 0) return ''
  const part = Math.min(bytes / totalBytes, 1)
  const full = Math.floor(part * BAR_WIDTH)
  return `[${'#'.repeat(full)}${'.'.repeat(BAR_WIDTH - full)}] ${Math.floor(part * 100)} %, `
}
