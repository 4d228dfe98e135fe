import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type ResultServer, startResultServer } from '../../src/http/server.ts'
import { DOCUMENT_FORMAT, encodeStatus } from '../../src/job/result.ts'
import { openLocalStore } from '../../src/store/store.ts'
import { effort, FUZZ_TIMEOUT_MS } from './effort.ts'

const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'
const FAILED = 'bc000000000000000000000000000000'
const LINKED = 'dd3a92508d764f9da1e4d3e5a9b6c7f0'
const SECRET = 'THE-SECRET-BEHIND-THE-BASE'
const ANSWER_MS = 5000

const top = mkdtempSync(join(tmpdir(), 'qworker-fuzz-'))
const base = join(top, 'results')
const errors: unknown[] = []
let server: ResultServer

beforeAll(async () => {
  const job = join(base, UUID.slice(0, 2), UUID)
  const elsewhere = join(top, 'elsewhere')
  for (const dir of [job, join(elsewhere, LINKED), join(job, 'folder'), join(base, '.work'), join(base, '.state')])
    mkdirSync(dir, { recursive: true })
  for (const dir of [top, base, elsewhere, join(elsewhere, LINKED), join(base, '.work'), join(job, 'folder')])
    for (const name of ['secret.txt', 'result.json', 'status.json']) writeFileSync(join(dir, name), SECRET)
  writeFileSync(join(job, '.hidden'), SECRET)
  writeFileSync(join(job, 'result.json'), '{"format":1,"result":1}\n')
  writeFileSync(join(job, 'status.json'), '{"format":1}\n')
  writeFileSync(join(job, 'a.txt'), 'abcdefghij')
  writeFileSync(join(job, 'ä %2e;?#.svg'), '<svg/>')
  symlinkSync('../../../secret.txt', join(job, 'link'))
  symlinkSync(join(top), join(job, 'tree'))
  symlinkSync('link', join(job, 'stdout.log'))
  symlinkSync(elsewhere, join(base, LINKED.slice(0, 2)))
  symlinkSync(join(elsewhere, LINKED), join(base, UUID.slice(0, 2), `${UUID.slice(0, 31)}1`))
  expect(spawnSync('mkfifo', [join(job, 'fifo')]).status).toBe(0)
  const failed = join(base, FAILED.slice(0, 2), FAILED)
  mkdirSync(failed)
  const timestamp = '2024-05-06T07:08:09.750Z'
  const status = { format: DOCUMENT_FORMAT, uuid: FAILED, type: 'a', state: 'failed', timestamp, attempts: [] } as const
  writeFileSync(join(failed, 'status.json'), encodeStatus(status))
  server = await startResultServer({
    store: await openLocalStore(base),
    host: '127.0.0.1',
    port: 0,
    running: () => undefined,
    health: () => ({ status: 'ok' }),
    onError: (error) => errors.push(error),
  })
})

afterAll(async () => {
  await server.close()
  rmSync(top, { recursive: true, force: true })
})

/** Sends bytes on a connection of their own; all that comes back until the server closes, or nothing more is to come. */
function exchange(bytes: string, thenEnd = false): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(server.port, '127.0.0.1')
    let answer = ''
    const timer = setTimeout(() => {
      socket.destroy()
      reject(new Error(`no end of the answer within ${ANSWER_MS} ms; so far: ${answer.slice(0, 300)}`))
    }, ANSWER_MS)
    socket.setEncoding('latin1')
    socket.on('data', (chunk) => {
      answer += chunk
    })
    // A server may close while we still send.
    socket.on('error', () => undefined)
    socket.on('close', () => {
      clearTimeout(timer)
      resolve(answer)
    })
    if (thenEnd) socket.end(bytes, 'latin1')
    else socket.write(bytes, 'latin1')
  })
}

const statuses = new Map<number, number>()

function checkAnswer(answer: string, mayBeSilent: boolean): void {
  expect(answer).not.toContain(SECRET)
  expect(errors).toEqual([])
  if (mayBeSilent && answer === '') return
  const status = Number(/^(?:HTTP\/1\.1 100 Continue\r\n\r\n)?HTTP\/1\.1 (\d{3}) /.exec(answer)?.[1])
  statuses.set(status, (statuses.get(status) ?? 0) + 1)
  expect(status, answer.slice(0, 200)).toBeGreaterThanOrEqual(200)
  expect(status, answer.slice(0, 200)).toBeLessThan(500)
}

const encode = (text: string) => [...Buffer.from(text)].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('')

const segment = fc.oneof(
  {
    arbitrary: fc.constantFrom(UUID, FAILED, LINKED, `${UUID.slice(0, 31)}1`, 'bc', 'dd', '.work', 'secret.txt'),
    weight: 4,
  },
  {
    arbitrary: fc.constantFrom(
      ...['a.txt', 'link', 'tree', 'fifo', 'folder', '.hidden', 'stdout.log', 'result.json', 'status.json', 'healthz'],
    ),
    weight: 4,
  },
  {
    arbitrary: fc.constantFrom('..', '.', '', '...', '..;', '..\\', '\\', '\\..\\..', '%', '%zz', '%c0%ae%c0%ae'),
    weight: 4,
  },
  {
    arbitrary: fc.constantFrom('%00', '%2e%2e', '%2f', '%5c', '..%2f..%2fsecret.txt', '%252e%252e', '..%00', '%ff'),
    weight: 3,
  },
  {
    arbitrary: fc.string({ unit: 'binary', maxLength: 6 }).map((text) => Buffer.from(text).toString('latin1')),
    weight: 1,
  },
  {
    arbitrary: fc.constantFrom(encode('link'), encode(UUID), encode('ä %2e;?#.svg'), encode('../../secret.txt')),
    weight: 2,
  },
)
const path = fc.oneof(
  { arbitrary: fc.array(segment, { maxLength: 6 }).map((parts) => `/${parts.join('/')}`), weight: 6 },
  { arbitrary: segment.map((name) => `/${UUID}/${name}`), weight: 4 },
  { arbitrary: fc.tuple(segment, fc.nat(20_000)).map(([part, times]) => `/${UUID}/${part.repeat(times)}`), weight: 1 },
)
const target = fc.oneof(
  { arbitrary: path, weight: 8 },
  {
    arbitrary: fc.tuple(path, fc.constantFrom('?', '#', '?a=/../', '%3f', ';')).map((parts) => parts.join('')),
    weight: 1,
  },
  { arbitrary: path.map((text) => `http://127.0.0.1${text}`), weight: 1 },
  { arbitrary: path.map((text) => `//${text}`), weight: 1 },
  { arbitrary: path.map((text) => text.slice(1)), weight: 1 },
  { arbitrary: fc.constantFrom('*', 'file:///etc/passwd', '/\0', '\0', '', ' ', '/ /', 'example.org:443'), weight: 1 },
)
const method = fc.oneof(
  { arbitrary: fc.constantFrom('GET', 'HEAD'), weight: 8 },
  {
    arbitrary: fc.constantFrom('OPTIONS', 'POST', 'PUT', 'DELETE', 'TRACE', 'PATCH', 'CONNECT', 'PROPFIND', 'get'),
    weight: 2,
  },
  { arbitrary: fc.string({ maxLength: 6 }), weight: 1 },
)
const header = fc.oneof(
  fc.tuple(
    fc.constantFrom('Range', 'If-Range', 'If-None-Match', 'If-Modified-Since', 'Accept-Encoding', 'Origin', 'Expect'),
    fc.oneof(
      fc.constantFrom(
        'bytes=0-3',
        'bytes=-1',
        'bytes=9-',
        'bytes=99-',
        'bytes=5-2',
        'bytes=0-1,3-4',
        `bytes=${'9'.repeat(400)}-`,
      ),
      fc.constantFrom('*', '"x"', 'W/"x"', 'Mon, 06 May 2024 07:08:09 GMT', '100-continue', 'null', ''),
      fc.string(),
    ),
  ),
  fc.constantFrom<[string, string]>(
    ['Upgrade', 'websocket'],
    ['Connection', 'upgrade'],
    ['Transfer-Encoding', 'chunked'],
    ['Content-Length', '5'],
    ['Content-Length', '-1'],
    ['Host', 'a b'],
    ['X', 'y'.repeat(20_000)],
  ),
)

const version = fc.oneof(
  { arbitrary: fc.constantFrom('1.1', '1.0'), weight: 20 },
  { arbitrary: fc.constantFrom('0.9', '9', '2.0', ''), weight: 1 },
)
const headers = fc.oneof(
  { arbitrary: fc.constant<[string, string][]>([]), weight: 3 },
  { arbitrary: fc.array(header, { minLength: 1, maxLength: 3 }), weight: 2 },
)
/** Paths that lead somewhere, so that what is behind the doors is tried too. */
const door = fc
  .tuple(
    fc.constantFrom(UUID, UUID, UUID, FAILED, LINKED, encode(UUID)),
    fc.constantFrom('', '/', '/result.json', '/status.json', '/a.txt', '/link', '/fifo', `/${encode('ä %2e;?#.svg')}`),
    fc.constantFrom('', '', '', '?x', '#x', '/', '/..'),
  )
  .map((parts) => `/${parts.join('')}`)

test(
  'any request is answered: never with 500, never with what lies beside or behind the results',
  async () => {
    const request = fc.tuple(method, fc.oneof(target, door), version, headers)
    await fc.assert(
      fc.asyncProperty(request, async ([verb, asked, version, headers]) => {
        const lines = [
          `${verb} ${asked} HTTP/${version}`,
          'Host: x',
          'Connection: close',
          ...headers.map((h) => h.join(': ')),
        ]
        // Node closes CONNECT without a word.
        checkAnswer(await exchange(`${lines.join('\r\n')}\r\n\r\n`), verb === 'CONNECT')
      }),
      effort(900),
    )
    for (const status of [200, 400, 404, 405]) expect(statuses.get(status), String(status)).toBeGreaterThan(0)
    expect(await exchange(`GET /${UUID}/a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)).toMatch(/abcdefghij$/)
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'any bytes at all do not harm the server',
  async () => {
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 200 }).map((array) => Buffer.from(array).toString('latin1')),
      fc
        .array(
          fc.oneof(
            fc.constantFrom(
              'GET ',
              'POST ',
              '/',
              UUID,
              ' HTTP/1.1',
              '\r\n',
              '\n',
              '\r\n\r\n',
              'Host: x',
              ': ',
              '\0',
              '\x16\x03\x01',
            ),
            fc.constantFrom(
              'Transfer-Encoding: chunked\r\n',
              'Content-Length: 3\r\n',
              '0\r\n\r\n',
              'ffffffff\r\n',
              'PRI * HTTP/2.0',
            ),
            segment,
          ),
          { maxLength: 12 },
        )
        .map((parts) => parts.join('')),
    )
    await fc.assert(
      fc.asyncProperty(bytes, async (text) => checkAnswer(await exchange(text, true), true)),
      effort(600),
    )
    expect(await exchange('GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')).toMatch(/"status":"ok"/)
  },
  FUZZ_TIMEOUT_MS,
)
