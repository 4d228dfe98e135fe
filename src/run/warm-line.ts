/**
 * The two lines of a warm job: one to the process, one from it. Pure.
 *
 *     -> {"uuid": ..., "type": ..., "attempt": 1, ..., "workdir": ..., "payload": ...}
 *     <- {"uuid": ..., "result": ...}   or   {"uuid": ..., "error": "text", "retry": false}
 *
 * There is no format number: readers ignore keys that they do not know, on both sides. A key that changes its meaning
 * gets a new name, and the old one is sent beside it for one release.
 */

import { describe, endOfString, excerpt, nestingDepth } from '../job/package.ts'
import { MAX_RESULT_BYTES, MAX_RESULT_DEPTH } from './run.ts'

/** What the process is told of a job, beside its payload. */
export interface JobLine {
  readonly uuid: string
  readonly type: string
  readonly attempt: number
  readonly max_attempts: number
  /** ISO 8601 UTC: when the process is ended, if it has not answered */
  readonly deadline: string
  /** seconds */
  readonly ttr: number
  readonly tube: string
  readonly priority: number
  /** absolute; for the job's files */
  readonly workdir: string
}

export type Answer =
  /** JSON text as it came: no digit is lost */
  | { readonly kind: 'result'; readonly json: string }
  | { readonly kind: 'error'; readonly error: string; readonly mayRetry: boolean }
  /** an answer to another job, or to another attempt */
  | { readonly kind: 'foreign'; readonly uuid: string; readonly problem: string }
  /** no answer at all */
  | { readonly kind: 'invalid'; readonly problem: string }

/** For all but the result: an error's text, and keys that we do not know. */
const ROOM_BYTES = 64 * 2 ** 10
export const MAX_ANSWER_BYTES = MAX_RESULT_BYTES + ROOM_BYTES
const MAX_ERROR_LENGTH = 1000
const SHOWN_LENGTH = 80

/** What some languages take for the end of a line. Within JSON the first two are blanks, the others stand in strings only. */
const LINE_ENDS = /[\n\r\u0085\u2028\u2029]/g

/** @param payloadJson well-formed JSON */
export function encodeJobLine(job: JobLine, payloadJson: string): string {
  const payload = payloadJson.replace(LINE_ENDS, (c) =>
    c < ' ' ? ' ' : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
  return `${JSON.stringify(job).slice(0, -1)},"payload":${payload}}\n`
}

/** Reads the line that came while a job was in hand. */
export function parseAnswer(bytes: Uint8Array, job: Pick<JobLine, 'uuid' | 'attempt'>): Answer {
  const text = decode(bytes)
  if (text === undefined) return invalid(`a line of ${bytes.length} bytes that is not UTF-8 text`)
  // The depth is looked at first: parsing megabytes of brackets takes seconds and a gigabyte.
  if (nestingDepth(text) > MAX_RESULT_DEPTH + 1)
    return invalid(`a line that is nested deeper than ${MAX_RESULT_DEPTH} levels`)
  const answer = parseObject(text)
  if (answer === undefined)
    return invalid(`${excerpt(JSON.stringify(text.slice(0, SHOWN_LENGTH)), SHOWN_LENGTH)}, which is no JSON object`)
  const { uuid, attempt, error, retry } = answer
  if (typeof uuid !== 'string') return invalid(`an object whose uuid is ${describe(uuid)}`)
  if (uuid !== job.uuid) return { kind: 'foreign', uuid, problem: `an answer to the job ${describe(uuid)}` }
  if (attempt !== undefined && attempt !== job.attempt)
    return {
      kind: 'foreign',
      uuid,
      problem: `an answer to attempt ${describe(attempt)}; this is attempt ${job.attempt}`,
    }
  const hasResult = Object.hasOwn(answer, 'result')
  if (hasResult === Object.hasOwn(answer, 'error'))
    return invalid(`an answer with ${hasResult ? 'a result and an error' : 'neither a result nor an error'}`)
  if (hasResult) return resultOf(text)
  if (typeof error !== 'string' || error === '') return invalid(`an error that is ${describe(error)}, not a text`)
  if (retry !== undefined && typeof retry !== 'boolean')
    return invalid(`an error whose retry is ${describe(retry)}, not true or false`)
  return { kind: 'error', error: excerpt(error, MAX_ERROR_LENGTH), mayRetry: retry !== false }
}

function resultOf(text: string): Answer {
  const json = memberText(text, 'result') as string
  const bytes = Buffer.byteLength(json)
  if (bytes <= MAX_RESULT_BYTES) return { kind: 'result', json }
  return invalid(
    `a result of ${bytes} bytes, it may have ${MAX_RESULT_BYTES}: write large data to a file in the job's workdir`,
  )
}

function invalid(problem: string): Answer {
  return { kind: 'invalid', problem }
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function decode(bytes: Uint8Array): string | undefined {
  try {
    return decoder.decode(bytes)
  } catch {
    return undefined
  }
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined
  } catch {
    return undefined
  }
}

/**
 * Text of a member's value, as it stands there. Of several with one name the last, as JSON.parse has it.
 * @param text a well-formed JSON object
 */
export function memberText(text: string, key: string): string | undefined {
  const quoted = JSON.stringify(key)
  let found: string | undefined
  let i = skipBlanks(text, text.indexOf('{') + 1)
  while (text.charCodeAt(i) === 0x22) {
    const keyEnd = endOfString(text, i) + 1
    const name = text.slice(i, keyEnd)
    const colon = skipBlanks(text, keyEnd)
    const start = skipBlanks(text, colon + 1)
    const end = endOfValue(text, start)
    if (name === quoted || (name.includes('\\') && JSON.parse(name) === key)) found = text.slice(start, end)
    const comma = skipBlanks(text, end)
    i = skipBlanks(text, comma + 1)
  }
  return found
}

function skipBlanks(text: string, from: number): number {
  let i = from
  for (let c = text.charCodeAt(i); c === 0x20 || c === 0x0a || c === 0x0d || c === 0x09; c = text.charCodeAt(++i));
  return i
}

function endOfValue(text: string, start: number): number {
  let depth = 0
  for (let i = start; i < text.length; i++) {
    const c = text.charCodeAt(i)
    if (c === 0x22) i = endOfString(text, i)
    else if (c === 0x5b || c === 0x7b) depth++
    else if (c === 0x5d || c === 0x7d) {
      if (depth === 0) return i
      depth--
    } else if (depth === 0 && (c === 0x2c || c === 0x20 || c === 0x0a || c === 0x0d || c === 0x09)) return i
    else continue
    if (depth === 0) return i + 1
  }
  return text.length
}
