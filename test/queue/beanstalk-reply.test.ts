import { describe, expect, it } from 'vitest'
import { Fields, MAX_LINE_BYTES, ReplyReader } from '../../src/queue/beanstalk-reply.ts'

/** Lines and bodies of all replies in pieces of the same bytes; each piece is overwritten when it has been read. */
function readAll(pieces: readonly Buffer[], maxBodyBytes = 2 ** 20): [line: string, body?: string][] {
  const reader = new ReplyReader()
  const found: [string, string?][] = []
  for (const piece of pieces) {
    const bytes = Buffer.concat([piece, Buffer.from('beyond')])
    reader.add(bytes, piece.length)
    while (reader.hasMore && reader.next(maxBodyBytes)) {
      const { line } = reader
      if (!/^(OK|RESERVED) /.test(line)) found.push([line])
      else {
        const body = reader.takeBody()
        expect(body.toString('latin1')).toBe(reader.readText())
        found.push([line, reader.readText()])
      }
    }
    expect(reader.hasMore).toBe(false)
    bytes.fill('?')
  }
  return found
}

const REPLIES: [line: string, body?: string][] = [
  ['INSERTED 1'],
  ['OK 0', ''],
  ['RESERVED 18446744073709551615 9', '\r\nOK 3\r\n\xff'],
  ['DELETED'],
  ['OK 12', '---\nage: 3\r\n'],
  [''],
  ['RESERVED 2 2', '\r\n'],
  ['OKAY'],
  ['TIMED_OUT'],
]
const wireOf = (replies: typeof REPLIES) =>
  Buffer.from(replies.map(([line, body]) => `${line}\r\n${body === undefined ? '' : `${body}\r\n`}`).join(''), 'latin1')

describe('replies', () => {
  it('are the same wherever their bytes are cut, once or twice', () => {
    const wire = wireOf(REPLIES)
    for (let one = 0; one <= wire.length; one++) {
      for (let two = one; two <= wire.length; two++) {
        const pieces = [wire.subarray(0, one), wire.subarray(one, two), wire.subarray(two)]
        expect(readAll(pieces), `cut at ${one} and ${two}`).toEqual(REPLIES)
      }
    }
  })

  it('are the same byte by byte', () => {
    const wire = wireOf(REPLIES)
    expect(readAll(Array.from(wire, (_, i) => wire.subarray(i, i + 1)))).toEqual(REPLIES)
  })

  it('may have a body of many pieces, which is kept when the next one comes', () => {
    const bodies = ['a', 'b', 'c'].map((letter) => letter.repeat(700_001))
    const wire = wireOf(bodies.map((body, i) => [`RESERVED ${i} ${body.length}`, body]))
    const reader = new ReplyReader()
    const taken: Buffer[] = []
    for (let at = 0; at < wire.length; at += 1000) {
      const piece = Buffer.from(wire.subarray(at, at + 1000))
      reader.add(piece, piece.length)
      while (reader.hasMore && reader.next(2 ** 20)) taken.push(reader.takeBody())
      piece.fill('?')
    }
    expect(taken.map((body) => body.equals(Buffer.from(bodies[taken.indexOf(body)] ?? '')))).toEqual([true, true, true])
  })

  it('may have a line of the limit, and none beyond it, however it comes', () => {
    const line = 'x'.repeat(MAX_LINE_BYTES - 2)
    const pieces = (bytes: Buffer) => [[bytes], [bytes.subarray(0, 600), bytes.subarray(600)]]
    for (const cut of pieces(Buffer.from(`${line}\r\n`))) expect(readAll(cut)).toEqual([[line]])
    for (const cut of pieces(Buffer.from(`${line}x\r\n`))) expect(() => readAll(cut)).toThrow('longer than 1024 bytes')
    for (const cut of pieces(Buffer.alloc(MAX_LINE_BYTES, 'x'))) {
      expect(() => readAll(cut)).toThrow('longer than 1024 bytes')
    }
  })

  it.each([
    ['a line that ends as on Unix', 'INSERTED 1\n', 'without a carriage return'],
    ['a body without a length', 'OK\r\n', 'a body of no length'],
    ['a length that is no number', 'OK 1e3\r\n', 'a body of no length'],
    ['a length below 0', 'RESERVED 1 -1\r\n', 'a body of no length'],
    ['a length of 30 digits', `RESERVED 1 ${'9'.repeat(30)}\r\n`, 'a body of no length'],
    ['a ticket that is no number', 'RESERVED x 1\r\n', 'a body of no length'],
    ['a reservation without a ticket', 'RESERVED 1\r\n', 'a body of no length'],
    ['a body that is larger than it may be', 'FOUND 1 101\r\n', 'a body of 101 bytes; at most 100'],
    ['a body that ends late', 'OK 3\r\nabcd\r\n', 'does not end where it should'],
    ['a body that ends early', 'OK 3\r\nab\r\nOK 3\r\n', 'does not end where it should'],
  ])('are refused with %s', (_, wire, message) => {
    const bytes = Buffer.from(wire)
    expect(() => readAll([bytes], 100)).toThrow(message)
    expect(() =>
      readAll(
        Array.from(bytes, (byte) => Buffer.from([byte])),
        100,
      ),
    ).toThrow(message)
  })
})

describe('fields of statistics', () => {
  const text = '---\nid: 7\ntube: 007\nstate: ready\nmin-age: 5\nage: 3\nnote: a: b\nversion: "1.12"\nodd: "\nlast: 9'

  it('are found in any order, by their whole name, as text', () => {
    for (const keys of [
      ['id', 'tube', 'age', 'note', 'version', 'odd', 'last'],
      ['last', 'odd', 'version', 'note', 'age', 'tube', 'id', 'id'],
    ]) {
      const fields = new Fields(text)
      const found = { id: '7', tube: '007', age: '3', note: 'a: b', version: '1.12', odd: '"', last: '9' }
      for (const key of keys) expect(fields.get(key)).toBe(found[key as keyof typeof found])
    }
  })

  it('are undefined when they are not there', () => {
    const fields = new Fields(text)
    for (const key of ['ready', 'ge', 'i', 'tub', '', '---']) expect(fields.get(key)).toBeUndefined()
    expect(new Fields('').get('id')).toBeUndefined()
  })

  it('are whole numbers, or none', () => {
    const fields = new Fields('---\na: 0\nb: 4294967295\nc: -1\nd: 1.5\ne: \nf: 0x10\ng: 1e3\nh: 1234567890123456\n')
    expect(fields.getNumber('a')).toBe(0)
    expect(fields.getNumber('b')).toBe(4_294_967_295)
    for (const key of ['c', 'd', 'e', 'f', 'g', 'h', 'i']) expect(fields.getNumber(key)).toBeNaN()
  })
})
