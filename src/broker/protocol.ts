/**
 * beanstalkd's protocol: lines and bodies out of raw bytes, commands out of lines. Text is one character per byte
 * throughout, so that bodies stay what they are.
 *
 * What looks odd here is what beanstalkd 1.12 does, and a client may have come to rely on it: commands are known by
 * their beginning (`quitting` is `quit`), some numbers may have a tail, a line is looked for in windows of 224 bytes.
 */

const LINE_BYTES = 224
const CR = 13
const LF = 10
const MAX_UINT32 = 4294967295
const MAX_INT64 = 2n ** 63n
const MAX_UINT64 = 2n ** 64n - 1n
const TUBE_NAME = /^[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}$/

export type Command =
  | { verb: 'put'; priority: number; delaySeconds: number; ttrSeconds: number; bytes: number; hasTail: boolean }
  | Each<IdVerb, { id: number }>
  | { verb: 'release'; id: number; priority: number; delaySeconds: number }
  | { verb: 'bury'; id: number; priority: number }
  | { verb: 'reserve-with-timeout'; seconds: number | undefined }
  | { verb: 'kick'; count: number }
  | Each<TubeVerb, { tube: string }>
  | { verb: 'pause-tube'; tube: string; seconds: number }
  | Each<PlainVerb, unknown>
  | Each<'bad' | 'unknown', unknown>

type Each<V extends string, Fields> = V extends V ? { verb: V } & Fields : never

type IdVerb = 'peek' | 'delete' | 'kick-job' | 'touch' | 'stats-job' | 'reserve-job'
type TubeVerb = 'use' | 'watch' | 'ignore' | 'stats-tube'
type PlainVerb =
  | 'peek-ready'
  | 'peek-delayed'
  | 'peek-buried'
  | 'reserve'
  | 'stats'
  | 'list-tubes-watched'
  | 'list-tube-used'
  | 'list-tubes'
  | 'quit'

export type Verb = Exclude<Command['verb'], 'bad' | 'unknown'>

const BAD: Command = { verb: 'bad' }
const UNKNOWN: Command = { verb: 'unknown' }

export function isTubeName(name: string): boolean {
  return TUBE_NAME.test(name)
}

/** @param line without its end */
export function parseCommand(line: string): Command {
  if (line.includes('\0')) return BAD
  const verbs = VERBS.get(line.charCodeAt(0))
  if (verbs === undefined) return UNKNOWN
  for (const [start, parse] of verbs) if (line.startsWith(start)) return parse(line)
  return UNKNOWN
}

type Parse = (line: string) => Command

const plain = (verb: PlainVerb): [string, Parse] => [verb, (line) => (line.length === verb.length ? { verb } : BAD)]

const withId = (verb: IdVerb): [string, Parse] => {
  const pattern = new RegExp(`^${verb}  *(\\d+)$`)
  return [
    `${verb} `,
    (line) => {
      const id = asUint64(pattern.exec(line)?.[1])
      return id === undefined ? BAD : { verb, id }
    },
  ]
}

const withTube = (verb: TubeVerb): [string, Parse] => [
  `${verb} `,
  (line) => {
    const tube = line.slice(verb.length + 1)
    return isTubeName(tube) ? { verb, tube } : BAD
  },
]

/** Those that begin alike in the order in which beanstalkd tries them. */
const VERBS: ReadonlyMap<number, readonly [start: string, Parse][]> = groupByFirst([
  ['put ', parsePut],
  withId('peek'),
  plain('peek-ready'),
  plain('peek-delayed'),
  plain('peek-buried'),
  ['reserve-with-timeout ', parseReserveWithTimeout],
  withId('reserve-job'),
  plain('reserve'),
  withId('delete'),
  ['release ', parseRelease],
  ['bury ', parseBury],
  ['kick ', parseKick],
  withId('kick-job'),
  withId('touch'),
  withId('stats-job'),
  withTube('stats-tube'),
  plain('stats'),
  withTube('use'),
  withTube('watch'),
  withTube('ignore'),
  plain('list-tubes-watched'),
  plain('list-tube-used'),
  plain('list-tubes'),
  ['quit', () => ({ verb: 'quit' })],
  ['pause-tube', parsePauseTube],
])

function groupByFirst(verbs: readonly [string, Parse][]): Map<number, [string, Parse][]> {
  const groups = new Map<number, [string, Parse][]>()
  for (const verb of verbs) {
    const first = verb[0].charCodeAt(0)
    groups.set(first, [...(groups.get(first) ?? []), verb])
  }
  return groups
}

function parsePut(line: string): Command {
  const match = /^put +(\d+) +(\d+) +(\d+) +(\d+)([\s\S]*)$/.exec(line)
  const priority = asUint32(match?.[1])
  const delaySeconds = asUint32(match?.[2])
  const ttrSeconds = asUint32(match?.[3])
  const bytes = asUint32(match?.[4])
  if (priority === undefined || delaySeconds === undefined || ttrSeconds === undefined || bytes === undefined)
    return BAD
  return { verb: 'put', priority, delaySeconds, ttrSeconds, bytes, hasTail: match?.[5] !== '' }
}

function parseRelease(line: string): Command {
  const match = /^release +(\d+) +(\d+) +(\d+)$/.exec(line)
  const id = asUint64(match?.[1])
  const priority = asUint32(match?.[2])
  const delaySeconds = asUint32(match?.[3])
  if (id === undefined || priority === undefined || delaySeconds === undefined) return BAD
  return { verb: 'release', id, priority, delaySeconds }
}

function parseBury(line: string): Command {
  const match = /^bury +(\d+) +(\d+)$/.exec(line)
  const id = asUint64(match?.[1])
  const priority = asUint32(match?.[2])
  return id === undefined || priority === undefined ? BAD : { verb: 'bury', id, priority }
}

/** As C's strtol reads it: what is no number is 0, a tail is ignored; the value is cut to 32 bits, below 0 is for ever. */
function parseReserveWithTimeout(line: string): Command {
  const digits = /^[ \t\n\v\f\r]*([+-]?\d+)/.exec(line.slice('reserve-with-timeout '.length))?.[1]
  const long = BigInt(digits?.replace('+', '') ?? 0)
  if (long >= MAX_INT64 || long < -MAX_INT64) return BAD
  const seconds = Number(BigInt.asIntN(32, long))
  return { verb: 'reserve-with-timeout', seconds: seconds < 0 ? undefined : seconds }
}

/** As C's strtoul reads it: a sign and a tail are taken; the value is cut to 32 bits. */
function parseKick(line: string): Command {
  const match = /^[ \t\n\v\f\r]*([+-]?)(\d+)/.exec(line.slice('kick '.length))
  if (match === null) return BAD
  const long = BigInt(match[2] as string)
  if (long > MAX_UINT64) return BAD
  return { verb: 'kick', count: Number(BigInt.asUintN(32, match[1] === '-' ? -long : long)) }
}

function parsePauseTube(line: string): Command {
  const match = /^pause-tube *([A-Za-z0-9+/;.$_()-]+) +(\d+)$/.exec(line)
  const seconds = asUint32(match?.[2])
  return seconds === undefined ? BAD : { verb: 'pause-tube', tube: match?.[1] ?? '', seconds }
}

function asUint32(digits: string | undefined): number | undefined {
  if (digits === undefined) return undefined
  const value = Number(digits)
  return value <= MAX_UINT32 ? value : undefined
}

/** Beyond 2^53 numbers run together, but no job has such a number. */
function asUint64(digits: string | undefined): number | undefined {
  if (digits === undefined || (digits.length > 19 && BigInt(digits) > MAX_UINT64)) return undefined
  return Number(digits)
}

const NOTHING = Buffer.alloc(0)

/** A line that was longer than beanstalkd takes; its bytes are gone up to the next end of a line. */
export const TOO_LONG = Symbol('too long')
/** A body that does not end where it should. */
export const UNTERMINATED = Symbol('unterminated')

/** The bytes of one connection, read as the server asks for them; undefined: not all of it is here yet. */
export class Reader {
  #bytes: Buffer = NOTHING
  #offset = 0
  #isDiscarding = false
  /** what came of a body before the last bytes */
  #parts: Buffer[] = []
  #partBytes = 0

  /** how many bytes wait to be read */
  get pending(): number {
    return this.#bytes.length - this.#offset
  }

  add(bytes: Buffer): void {
    this.#bytes = this.pending === 0 ? bytes : Buffer.concat([this.#bytes.subarray(this.#offset), bytes])
    this.#offset = 0
  }

  readLine(): string | typeof TOO_LONG | undefined {
    const bytes = this.#bytes
    for (;;) {
      const start = this.#offset
      const end = Math.min(bytes.length, start + LINE_BYTES)
      let at = start
      while (at < end && bytes[at] !== CR) at++
      // Only the first carriage return of a window counts, and none in its last place.
      if (at < end - 1 && bytes[at + 1] === LF) {
        this.#offset = at + 2
        if (!this.#isDiscarding) return bytes.toString('latin1', start, at)
        this.#isDiscarding = false
        return TOO_LONG
      }
      if (end - start < LINE_BYTES) return undefined
      this.#offset = end
      this.#isDiscarding = true
    }
  }

  /** @param size without the end of the line that must follow */
  readBody(size: number): string | typeof UNTERMINATED | undefined {
    const missing = size + 2 - this.#partBytes
    if (this.pending < missing) {
      this.#parts.push(this.#bytes.subarray(this.#offset))
      this.#partBytes += this.pending
      this.#drop()
      return undefined
    }
    let bytes = this.#bytes
    let start = this.#offset
    this.#offset += missing
    if (this.#partBytes > 0) {
      bytes = Buffer.concat([...this.#parts, bytes.subarray(start, this.#offset)])
      start = 0
      this.#parts = []
      this.#partBytes = 0
    }
    const end = start + size
    return bytes[end] === CR && bytes[end + 1] === LF ? bytes.toString('latin1', start, end) : UNTERMINATED
  }

  /** Drops up to `count` bytes. @returns how many are still to be dropped */
  skip(count: number): number {
    if (this.pending < count) {
      const left = count - this.pending
      this.#drop()
      return left
    }
    this.#offset += count
    return 0
  }

  #drop(): void {
    this.#bytes = NOTHING
    this.#offset = 0
  }
}
