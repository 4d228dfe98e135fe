/**
 * The work package: what a job looks like on the wire.
 *
 * A package is the JSON array `[header, payload]` in UTF-8. The payload is kept as the text that was sent: numbers
 * that a JavaScript number cannot hold reach the algorithm unharmed.
 *
 * This is format 1. Its number does not stand in the bytes: readers tell formats apart by their shape. To change it: a
 * new optional header key needs nothing; anything else needs a new shape that the release before refuses (so that no old
 * worker misreads it), and a release that reads both before one that writes it.
 */

/** Levels of nesting that a package may have; algorithms parse it with recursive parsers, which a deep one would crash. */
export const MAX_DEPTH = 128

export const UUID_PATTERN = /^[0-9a-f]{32}$/
export const TYPE_PATTERN = /^[a-z0-9][a-z0-9_.-]{0,63}$/

const MAX_ATTEMPTS_LIMIT = 1000
const MAX_TAGS = 32
const MAX_TAG_LENGTH = 256

export interface Header {
  /** 32 lower-case hexadecimal digits */
  readonly uuid: string
  readonly type: string
  /** Tries before the job is buried; the worker's MAX_ATTEMPTS when absent. */
  readonly max_attempts?: number
  readonly tags?: Readonly<Record<string, string>>
  readonly [unknown: string]: unknown
}

export interface WorkPackage {
  readonly header: Header
  /** JSON text of the payload, just as it was sent */
  readonly payloadJson: string
}

export type PackageErrorCode =
  | 'not_utf8'
  | 'not_json'
  | 'too_deep'
  | 'bad_shape'
  | 'bad_uuid'
  | 'bad_type'
  | 'bad_max_attempts'
  | 'bad_tags'

/** Bytes that are no work package. No retry can help. */
export class PackageError extends Error {
  readonly code: PackageErrorCode
  /** The job's uuid where it could be read: its status document can then tell the reason. */
  readonly uuid: string | undefined
  readonly type: string | undefined

  constructor(code: PackageErrorCode, message: string, known: { uuid?: string; type?: string; cause?: unknown } = {}) {
    super(message, { cause: known.cause })
    this.name = 'PackageError'
    this.code = code
    this.uuid = known.uuid
    this.type = known.type
  }
}

/**
 * Reads a work package.
 * @throws PackageError with a message that names what came and what was expected
 */
export function parsePackage(bytes: Uint8Array): WorkPackage {
  const text = decodeUtf8(bytes)
  checkDepth(text, 0)
  const value = parseJson(text)
  if (!Array.isArray(value) || value.length !== 2) {
    throw new PackageError(
      'bad_shape',
      `a work package is a JSON array of two elements, [header, payload]; this is ${describe(value)}`,
    )
  }
  return { header: checkHeader(value[0]), payloadJson: secondElement(text) }
}

/**
 * Makes the bytes of a work package.
 * @throws PackageError when the package is one that `parsePackage` would refuse
 */
export function encodePackage(workPackage: WorkPackage): Buffer {
  const bytes = Buffer.from(`[${JSON.stringify(workPackage.header)},${workPackage.payloadJson}]`)
  parsePackage(bytes)
  return bytes
}

/**
 * @param levels that a package has around the text
 * @throws PackageError `too_deep`
 */
export function checkDepth(text: string, levels: number): void {
  const depth = nestingDepth(text) + levels
  if (depth <= MAX_DEPTH) return
  throw new PackageError('too_deep', `the work package is nested ${depth} levels deep; at most ${MAX_DEPTH} are taken`)
}

function decodeUtf8(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new PackageError('not_utf8', `the work package (${bytes.length} bytes) is not UTF-8 text`, { cause })
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new PackageError('not_json', `the work package is not JSON: ${excerpt(reason, 160)}`, { cause })
  }
}

/** @throws PackageError */
export function checkHeader(header: unknown): Header {
  if (typeof header !== 'object' || header === null || Array.isArray(header)) {
    throw new PackageError(
      'bad_shape',
      `the header (first element) must be an object with uuid and type; it is ${describe(header)}`,
    )
  }
  const fields = header as Record<string, unknown>
  const known: { uuid?: string; type?: string } = {}
  if (isUuid(fields.uuid)) known.uuid = fields.uuid
  if (isType(fields.type)) known.type = fields.type
  if (known.uuid === undefined) throw new PackageError('bad_uuid', uuidProblem(fields.uuid), known)
  if (known.type === undefined) throw new PackageError('bad_type', typeProblem(fields.type), known)
  const attemptsProblem = maxAttemptsProblem(fields.max_attempts)
  if (attemptsProblem) throw new PackageError('bad_max_attempts', attemptsProblem, known)
  const tagProblem = tagsProblem(fields.tags)
  if (tagProblem) throw new PackageError('bad_tags', tagProblem, known)
  return fields as Header
}

export function isUuid(value: unknown): value is string {
  return typeof value === 'string' && UUID_PATTERN.test(value)
}

export function isType(value: unknown): value is string {
  return typeof value === 'string' && TYPE_PATTERN.test(value)
}

/** One line that tells what is wrong with a uuid. */
export function uuidProblem(value: unknown): string {
  const hint =
    typeof value === 'string' && isUuid(value.replaceAll('-', '').toLowerCase())
      ? `; write it as ${value.replaceAll('-', '').toLowerCase()}`
      : ''
  return `uuid must be 32 lower-case hexadecimal digits; it is ${describe(value)}${hint}`
}

/** One line that tells what is wrong with a type. */
export function typeProblem(value: unknown): string {
  return `type must be 1 to 64 of a-z 0-9 _ . - and begin with a letter or digit; it is ${describe(value)}`
}

function maxAttemptsProblem(value: unknown): string | undefined {
  if (value === undefined) return undefined
  if (Number.isInteger(value) && (value as number) >= 1 && (value as number) <= MAX_ATTEMPTS_LIMIT) return undefined
  return `max_attempts must be a whole number from 1 to ${MAX_ATTEMPTS_LIMIT}; it is ${describe(value)}`
}

function tagsProblem(value: unknown): string | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return `tags must be an object of strings; it is ${describe(value)}`
  }
  const entries = Object.entries(value)
  if (entries.length > MAX_TAGS) return `a job takes at most ${MAX_TAGS} tags; these are ${entries.length}`
  for (const [key, tag] of entries) {
    if (typeof tag !== 'string') return `tag ${describe(key)} must be a string; it is ${describe(tag)}`
    if (key.length > MAX_TAG_LENGTH || tag.length > MAX_TAG_LENGTH) {
      return `tag ${describe(key)} is longer than ${MAX_TAG_LENGTH} characters`
    }
  }
  return undefined
}

/** A value in a message: short, on one line, without control characters. */
export function describe(value: unknown): string {
  if (value === undefined) return 'missing'
  if (Array.isArray(value)) return `an array of ${value.length} element${value.length === 1 ? '' : 's'}`
  if (typeof value === 'object' && value !== null) return 'an object'
  return excerpt(JSON.stringify(value) ?? String(value), 80)
}

/** Foreign text in a message: on one line, without control characters, and no longer than that. */
export function excerpt(text: string, length: number): string {
  const line = text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ')
  return line.length <= length ? line : `${line.slice(0, length)}...`
}

/** Deepest nesting of brackets outside strings; works on any text and never recurses. */
export function nestingDepth(text: string): number {
  let depth = 0
  let deepest = 0
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i)
    if (c === 0x22) i = endOfString(text, i)
    else if (c === 0x5b || c === 0x7b) deepest = Math.max(deepest, ++depth)
    else if (c === 0x5d || c === 0x7d) depth--
  }
  return deepest
}

/** @param open place of the quote that begins a string; @returns that of the quote that ends it */
export function endOfString(text: string, open: number): number {
  let i = open + 1
  while (i < text.length && text.charCodeAt(i) !== 0x22) i += text.charCodeAt(i) === 0x5c ? 2 : 1
  return i
}

/** Text of the second element of a JSON array that is known to be well formed and to have two elements. */
function secondElement(text: string): string {
  let depth = 0
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i)
    if (c === 0x22) i = endOfString(text, i)
    else if (c === 0x5b || c === 0x7b) depth++
    else if (c === 0x5d || c === 0x7d) depth--
    else if (c === 0x2c && depth === 1) return text.slice(i + 1, text.lastIndexOf(']')).trim()
  }
  throw new PackageError('bad_shape', 'a work package is a JSON array of two elements, [header, payload]')
}
