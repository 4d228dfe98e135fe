/**
 * beanstalkd's replies out of the bytes that come; pure. A reply is a line, and behind some lines a body of the length
 * that the line tells. What a peer may make us keep is bounded: a line by MAX_LINE_BYTES, a body by whoever asked.
 */

/** The longest that beanstalkd sends is that of a tube, `USING` and a name of 200. */
export const MAX_LINE_BYTES = 1024

const FIRST_ROOM_BYTES = 64 * 1024
const CR = 13
const LF = 10
const NOTHING: Buffer = Buffer.alloc(0)

const BODY_WORD = /^(?:OK|RESERVED|FOUND)(?= |$)/
const BODY_LINE = /^(?:OK|(?:RESERVED|FOUND) \d{1,20}) (\d{1,10})$/

/** Reads replies one after the other. What throws is no reply of beanstalkd's: none can be read after it. */
export class ReplyReader {
  /** of the reply at hand, without its end */
  line = ''
  #bytes = NOTHING
  #at = 0
  #end = 0
  /** of a line that has not ended */
  #head = ''
  /** of the body at hand, or under way; -1 when there is none */
  #bodyBytes = -1
  #isInBody = false
  #body = NOTHING
  #bodyStart = 0
  /** what came of a body that came in pieces */
  #room = NOTHING
  #filled = 0

  /**
   * Takes bytes that came. They are the caller's again, and may be overwritten, as soon as `next` has said false, or
   * `hasMore` does.
   */
  add(bytes: Buffer, length: number): void {
    this.#bytes = bytes
    this.#at = 0
    this.#end = length
  }

  get hasMore(): boolean {
    return this.#at < this.#end
  }

  /**
   * @param maxBodyBytes what the reply may have as a body; 0 when it has none
   * @returns false when not all of the reply has come
   * @throws RangeError
   */
  next(maxBodyBytes: number): boolean {
    this.#body = NOTHING
    if (!this.#isInBody) {
      if (!this.#readLine()) return false
      this.#bodyBytes = bodyBytesOf(this.line)
      if (this.#bodyBytes < 0) return true
      if (this.#bodyBytes > maxBodyBytes)
        throw new RangeError(`it announces a body of ${this.#bodyBytes} bytes; at most ${maxBodyBytes} are expected`)
    }
    this.#isInBody = !this.#readBody()
    return !this.#isInBody
  }

  /** The first word of the line. */
  get word(): string {
    const end = this.line.indexOf(' ')
    return end < 0 ? this.line : this.line.slice(0, end)
  }

  /** One character for each byte; before the next reply is read. */
  readText(): string {
    return this.#body.toString('latin1', this.#bodyStart, this.#bodyStart + this.#bodyBytes)
  }

  /** The body as the caller's own; before the next reply is read. */
  takeBody(): Buffer {
    const end = this.#bodyStart + this.#bodyBytes
    if (this.#body !== this.#bytes) return this.#body.subarray(this.#bodyStart, end)
    const own = Buffer.allocUnsafe(this.#bodyBytes)
    this.#body.copy(own, 0, this.#bodyStart, end)
    return own
  }

  #readLine(): boolean {
    const bytes = this.#bytes
    const start = this.#at
    const limit = Math.min(this.#end, start + MAX_LINE_BYTES - this.#head.length)
    let end = start
    while (end < limit && bytes[end] !== LF) end++
    this.#at = end
    if (end === limit) {
      this.#head += bytes.toString('latin1', start, end)
      if (this.#head.length >= MAX_LINE_BYTES) throw new RangeError(`its line is longer than ${MAX_LINE_BYTES} bytes`)
      return false
    }
    this.#at++
    if (this.#head === '' && end > start && bytes[end - 1] === CR) {
      this.line = bytes.toString('latin1', start, end - 1)
      return true
    }
    const line = this.#head + bytes.toString('latin1', start, end)
    if (!line.endsWith('\r')) throw new RangeError('its line ends without a carriage return')
    this.line = line.slice(0, -1)
    this.#head = ''
    return true
  }

  #readBody(): boolean {
    const total = this.#bodyBytes + 2
    if (this.#filled === 0 && this.#end - this.#at >= total) {
      this.#body = this.#bytes
      this.#bodyStart = this.#at
      this.#at += total
    } else {
      const count = Math.min(this.#end - this.#at, total - this.#filled)
      this.#makeRoom(this.#filled + count, total)
      this.#bytes.copy(this.#room, this.#filled, this.#at, this.#at + count)
      this.#at += count
      this.#filled += count
      if (this.#filled < total) return false
      this.#body = this.#room
      this.#bodyStart = 0
      this.#room = NOTHING
      this.#filled = 0
    }
    const end = this.#bodyStart + this.#bodyBytes
    if (this.#body[end] === CR && this.#body[end + 1] === LF) return true
    throw new RangeError('its body does not end where it should')
  }

  /** Doubled, for no byte is to be copied often; not all at once, for what is announced may never come. */
  #makeRoom(needed: number, total: number): void {
    if (this.#room.length >= needed) return
    const larger = Buffer.allocUnsafeSlow(Math.min(total, Math.max(needed, 2 * this.#room.length, FIRST_ROOM_BYTES)))
    this.#room.copy(larger, 0, 0, this.#filled)
    this.#room = larger
  }
}

/** -1 for a line that has no body behind it. */
function bodyBytesOf(line: string): number {
  const first = line.charCodeAt(0)
  // O, R or F: most replies are told by this alone.
  if ((first !== 0x4f && first !== 0x52 && first !== 0x46) || !BODY_WORD.test(line)) return -1
  const digits = BODY_LINE.exec(line)?.[1]
  if (digits === undefined) throw new RangeError('it announces a body of no length')
  return Number(digits)
}

/**
 * `key: value` lines behind a first line of `---`: the only YAML that the commands used here are answered with. Read as
 * text: a YAML parser makes a number of a tube that is called 007.
 */
export class Fields {
  readonly #text: string
  #at = 0

  constructor(text: string) {
    this.#text = text
  }

  /** All that are asked for in the order in which they stand there cost one look through the text. */
  get(key: string): string | undefined {
    const start = this.#find(key)
    if (start < 0) return undefined
    const text = this.#text
    const end = text.indexOf('\n', start)
    this.#at = end < 0 ? 0 : end
    const value = end < 0 ? text.slice(start) : text.slice(start, end)
    const isQuoted = value.length > 1 && value.startsWith('"') && value.endsWith('"')
    return isQuoted ? value.slice(1, -1) : value
  }

  /** NaN when it is not there, or no whole number. */
  getNumber(key: string): number {
    const value = this.get(key)
    return value !== undefined && /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN
  }

  /** Where the value begins. */
  #find(key: string): number {
    const wanted = `\n${key}: `
    const ahead = this.#text.indexOf(wanted, this.#at)
    const found = ahead < 0 ? this.#text.indexOf(wanted) : ahead
    return found < 0 ? -1 : found + wanted.length
  }
}
