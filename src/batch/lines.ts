/** The lines of a batch: bytes into lines, a line into a work package. */

import { checkDepth, checkHeader, encodePackage, type Header, PackageError } from '../job/package.ts'
import { type HeaderDefaults, makePackage, payloadFromText } from '../producer.ts'
import { QueueError } from '../queue/queue.ts'

/** Longest line in bytes. */
const MAX_LINE_BYTES = 16 * 2 ** 20

/** Lines that came together. Handed on as one: a promise for each line would cost more than the line. */
export interface LineBlock {
  /** without their ends (LF or CRLF), empty ones too */
  readonly lines: readonly string[]
  /** bytes of the text up to the end of each line */
  readonly ends: readonly number[]
}

export interface SplitOptions {
  readonly maxBytes?: number
  /** bytes before the first chunk; a text that is read from its beginning loses its byte order mark */
  readonly offset?: number
}

/**
 * Lines of UTF-8 text, in blocks. Holds one line and one chunk.
 * @throws PackageError `not_utf8`, QueueError `too_big` for a line over `maxBytes`; behind the lines before it
 */
export async function* splitLines(
  chunks: AsyncIterable<Uint8Array>,
  { maxBytes = MAX_LINE_BYTES, offset = 0 }: SplitOptions = {},
): AsyncGenerator<LineBlock> {
  const splitter = new Splitter(maxBytes, offset)
  let parts: Buffer[] = []
  let held = 0
  for await (const bytes of chunks) {
    const chunk = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const end = chunk.lastIndexOf(0x0a) + 1
    if (end > 0) {
      yield* splitter.split(held === 0 ? chunk.subarray(0, end) : Buffer.concat([...parts, chunk.subarray(0, end)]))
      parts = []
      held = 0
    }
    if (end === chunk.length) continue
    parts.push(chunk.subarray(end))
    held += chunk.length - end
    if (held > maxBytes) throw lineTooLong(maxBytes)
  }
  if (held > 0) yield* splitter.split(Buffer.concat(parts))
}

class Splitter {
  readonly #maxBytes: number
  #offset: number

  constructor(maxBytes: number, offset: number) {
    this.#maxBytes = maxBytes
    this.#offset = offset
  }

  *split(bytes: Buffer): Generator<LineBlock> {
    let text: string
    try {
      if (bytes.length > this.#maxBytes) throw lineTooLong(this.#maxBytes)
      text = UTF8.decode(bytes)
    } catch {
      yield* this.#splitOneByOne(bytes)
      return
    }
    const lines: string[] = []
    const ends: number[] = []
    const isAscii = text.length === bytes.length
    if (this.#offset === 0 && text.startsWith('\ufeff')) {
      text = text.slice(1)
      this.#offset = BOM_BYTES
    }
    for (let at = 0; at < text.length; ) {
      const lf = text.indexOf('\n', at)
      const next = lf < 0 ? text.length : lf + 1
      this.#offset += isAscii ? next - at : Buffer.byteLength(text.slice(at, next))
      const end = lf < 0 ? next : lf
      lines.push(text.slice(at, end > at && text.charCodeAt(end - 1) === 0x0d ? end - 1 : end))
      ends.push(this.#offset)
      at = next
    }
    yield { lines, ends }
  }

  /** Each line by itself: those before a bad one are handed on. */
  *#splitOneByOne(bytes: Buffer): Generator<LineBlock> {
    for (let at = 0; at < bytes.length; ) {
      const lf = bytes.indexOf(0x0a, at)
      const end = lf < 0 ? bytes.length : lf
      if (end - at > this.#maxBytes) throw lineTooLong(this.#maxBytes)
      const line = decodeLine(bytes.subarray(at, end))
      const next = lf < 0 ? end : lf + 1
      const isFirst = this.#offset === 0
      this.#offset += next - at
      at = next
      yield { lines: [(isFirst ? line.replace(/^\ufeff/, '') : line).replace(/\r$/, '')], ends: [this.#offset] }
    }
  }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const BOM_BYTES = 3

function decodeLine(bytes: Buffer): string {
  try {
    return UTF8.decode(bytes)
  } catch (cause) {
    throw new PackageError('not_utf8', `the line (${bytes.length} bytes) is not UTF-8 text`, { cause })
  }
}

function lineTooLong(maxBytes: number): QueueError {
  return new QueueError('too_big', `the line is longer than ${maxBytes} bytes: put the data on a URL and send that`)
}

export interface LinePackage {
  readonly uuid: string
  readonly type: string
  /** the work package, JSON */
  readonly text: string
}

/** Makes the work package of a line, which has its number. @throws PackageError */
export type Packager = (text: string, line: number) => LinePackage

/**
 * A JSON array of two is a package when its first element is an object that is empty or has a key of a header; what
 * its header lacks comes from `defaults`, and its uuid from `makeUuid`. Anything else is a payload, so that a series of
 * two points is no package by accident. Each line is parsed once.
 * @throws PackageError for defaults that no header may have
 */
export function makePackager(defaults: HeaderDefaults, makeUuid: (line: number) => string): Packager {
  const { type } = defaults
  const head = type === undefined ? '' : makeHead({ ...defaults, type })
  return (line, number) => {
    const text = line.trim()
    const first = text.charCodeAt(0)
    const isJson = first === 0x7b || first === 0x5b
    const value = isJson ? parseLine(text) : undefined
    const given = first === 0x5b ? readHeader(value) : undefined
    if (given !== undefined) return completePackage(text, given, defaults, () => makeUuid(number))
    if (type === undefined) {
      throw new PackageError(
        'bad_type',
        'the line is a payload and no type is given: give one (-a TYPE), or write the line as [{"type": "..."}, payload]',
      )
    }
    if (isJson) checkDepth(text, 1)
    const uuid = makeUuid(number)
    return { uuid, type, text: `[{"uuid":"${uuid}"${head},${isJson ? text : payloadFromText(line)}]` }
  }
}

/** What stands in every package behind the digits of its uuid, checked once. */
function makeHead(defaults: HeaderDefaults & { readonly type: string }): string {
  const made = makePackage({ ...defaults, payloadJson: '0' })
  encodePackage(made)
  const { uuid: _, ...others } = made.header
  return `,${JSON.stringify(others).slice(1)}`
}

function parseLine(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    // It tells what is wrong.
    payloadFromText(text)
    throw cause
  }
}

const HEADER_KEYS = ['uuid', 'type', 'max_attempts', 'tags']

function readHeader(value: unknown): object | undefined {
  if (!Array.isArray(value) || value.length !== 2) return undefined
  const first: unknown = value[0]
  if (typeof first !== 'object' || first === null || Array.isArray(first)) return undefined
  const keys = Object.keys(first)
  return keys.length === 0 || keys.some((key) => HEADER_KEYS.includes(key)) ? first : undefined
}

function completePackage(
  text: string,
  given: object,
  { type, maxAttempts, tags }: HeaderDefaults,
  makeUuid: () => string,
): LinePackage {
  checkDepth(text, 0)
  const added: Partial<Header> = {
    ...(Object.hasOwn(given, 'uuid') ? {} : { uuid: makeUuid() }),
    ...(Object.hasOwn(given, 'type') || type === undefined ? {} : { type }),
    ...(Object.hasOwn(given, 'max_attempts') || maxAttempts === undefined ? {} : { max_attempts: maxAttempts }),
    ...(Object.hasOwn(given, 'tags') || tags === undefined ? {} : { tags }),
  }
  const header = checkHeader({ ...added, ...given })
  const missing = JSON.stringify(added).slice(1, -1)
  const comma = missing !== '' && Object.keys(given).length > 0 ? ',' : ''
  // What is missing is written into the text, before the first key: the rest of the line stays as it was sent.
  const { uuid } = header
  return { uuid, type: header.type, text: missing === '' ? text : text.replace('{', () => `{${missing}${comma}`) }
}
