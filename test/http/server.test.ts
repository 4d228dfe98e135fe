import { createHash, randomBytes } from 'node:crypto'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { request } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type ResultServer, startResultServer } from '../../src/http/server.ts'
import { DOCUMENT_FORMAT, encodeStatus, type JobState, type StatusDocument } from '../../src/job/result.ts'
import { type LocalStore, openLocalStore } from '../../src/store/store.ts'

const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'
const OTHER = '0'.repeat(32)

let top: string
let store: LocalStore
let server: ResultServer
let url: string
const running = new Map<string, StatusDocument>()
const errors: unknown[] = []

beforeEach(async () => {
  top = mkdtempSync(join(tmpdir(), 'qworker-http-'))
  mkdirSync(join(top, 'results'))
  writeFileSync(join(top, 'secret.txt'), 'SECRET')
  store = await openLocalStore(join(top, 'results'))
  await store.check()
  server = await start()
  url = `http://127.0.0.1:${server.port}`
})

afterEach(async () => {
  await server.close()
  await store.close()
  running.clear()
  errors.splice(0)
  rmSync(top, { recursive: true, force: true })
})

function start(used = store, port = 0): Promise<ResultServer> {
  return startResultServer({
    store: used,
    host: '127.0.0.1',
    port,
    running: (uuid) => running.get(uuid),
    health: () => ({ status: 'ok', slots: 4 }),
    onError: (error) => errors.push(error),
  })
}

function statusOf(state: JobState, more: Partial<StatusDocument> = {}): StatusDocument {
  const timestamp = '2024-05-06T07:08:09.750Z'
  return { format: DOCUMENT_FORMAT, uuid: UUID, type: 'forecast', state, timestamp, attempts: [], ...more }
}

const RESULT = `{"format":1,"uuid":"${UUID}","timestamp":"2024-05-06T07:08:09.750Z","result":1.10}\n`

async function publish(contents: Record<string, string | Buffer> = {}, result: string | null = RESULT): Promise<void> {
  const files = new Map<string, string>()
  for (const [name, content] of Object.entries(contents)) {
    const path = join(top, randomBytes(8).toString('hex'))
    writeFileSync(path, content)
    files.set(name, path)
  }
  await store.publish({
    uuid: UUID,
    files,
    status: encodeStatus(statusOf(result === null ? 'failed' : 'complete')),
    ...(result === null ? {} : { result }),
  })
}

function jobDir(): string {
  return join(top, 'results', UUID.slice(0, 2), UUID)
}

/** Sends bytes as they are and gives all that comes back: `fetch` would tidy the path. */
function raw(text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(server.port, '127.0.0.1')
    let answer = ''
    socket.setEncoding('latin1')
    socket.on('data', (chunk) => {
      answer += chunk
    })
    socket.on('error', reject)
    socket.on('close', () => resolve(answer))
    socket.on('connect', () => socket.write(text))
  })
}

function rawGet(target: string, headers = ''): Promise<string> {
  return raw(`GET ${target} HTTP/1.1\r\nHost: x\r\n${headers}Connection: close\r\n\r\n`)
}

function codeOf(answer: string): number {
  return Number(/^HTTP\/1\.1 (\d{3})/.exec(answer)?.[1])
}

describe('the result of a job', () => {
  test('is its document, under three paths, as it was published', async () => {
    await publish()
    for (const path of [`/${UUID}`, `/${UUID}/`, `/${UUID}/result.json`, `/${UUID}?t=1#x`]) {
      const answer = await fetch(url + path)
      expect(answer.status).toBe(200)
      expect(answer.headers.get('content-type')).toBe('application/json; charset=utf-8')
      expect(answer.headers.get('cache-control')).toBe('no-cache')
      expect(answer.headers.get('last-modified')).toMatch(/GMT$/)
      expect(answer.headers.get('etag')).toMatch(/^"[\w-]+"$/)
      expect(await answer.text()).toBe(RESULT)
    }
  })

  test('is 202 with the status document while the job is in this worker', async () => {
    running.set(UUID, statusOf('running'))
    const answer = await fetch(`${url}/${UUID}`)
    expect(answer.status).toBe(202)
    expect(answer.headers.get('retry-after')).toBe('1')
    expect(answer.headers.get('cache-control')).toBe('no-store')
    expect(await answer.json()).toEqual(statusOf('running'))
  })

  test.each(['scheduled', 'queued', 'running', 'complete'] as const)(
    'is 202 when its status says %s',
    async (state) => {
      await store.writeStatus(UUID, encodeStatus(statusOf(state)))
      const answer = await fetch(`${url}/${UUID}/result.json`)
      expect([answer.status, answer.headers.get('retry-after')]).toEqual([202, '1'])
      expect(await answer.json()).toEqual(statusOf(state))
    },
  )

  test('says in Retry-After when the job is tried again', async () => {
    const retryAt = new Date(Date.now() + 90_000).toISOString()
    await store.writeStatus(UUID, encodeStatus(statusOf('queued', { retry_at: retryAt })))
    const seconds = Number((await fetch(`${url}/${UUID}`)).headers.get('retry-after'))
    expect(seconds).toBeGreaterThan(60)
    expect(seconds).toBeLessThanOrEqual(90)
    await store.writeStatus(UUID, encodeStatus(statusOf('queued', { retry_at: '2001-01-01T00:00:00Z' })))
    expect((await fetch(`${url}/${UUID}`)).headers.get('retry-after')).toBe('1')
  })

  test.each([
    ['failed', 422],
    ['stopped', 422],
    ['discarded', 422],
    ['expired', 410],
  ] as const)('is, when the job %s, %i with the status document', async (state, code) => {
    await store.writeStatus(UUID, encodeStatus(statusOf(state, { reason: 'exit 10' })))
    const answer = await fetch(`${url}/${UUID}`)
    expect([answer.status, answer.headers.get('retry-after')]).toEqual([code, null])
    expect(await answer.json()).toEqual(statusOf(state, { reason: 'exit 10' }))
  })

  test('is 404 in JSON when nobody knows the job', async () => {
    for (const path of [`/${OTHER}`, `/${OTHER}/`, `/${OTHER}/result.json`, `/${OTHER}/status.json`]) {
      const answer = await fetch(url + path)
      expect(answer.status).toBe(404)
      expect(await answer.json()).toMatchObject({ error: 'unknown_job', uuid: OTHER })
    }
  })

  test('stays complete when the job runs once more', async () => {
    await publish()
    running.set(UUID, statusOf('running'))
    expect((await fetch(`${url}/${UUID}`)).status).toBe(200)
    expect(await (await fetch(`${url}/${UUID}/status.json`)).json()).toMatchObject({ state: 'complete' })
  })

  test('is given whole when it is large', async () => {
    const large = `{"result":"${'x'.repeat(3_000_000)}"}`
    await publish({}, large)
    const answer = await fetch(`${url}/${UUID}`)
    expect(answer.headers.get('content-type')).toBe('application/json; charset=utf-8')
    const etag = answer.headers.get('etag') ?? ''
    expect(await answer.text()).toBe(large)
    expect((await fetch(`${url}/${UUID}`, { headers: { 'If-None-Match': etag } })).status).toBe(304)
  })
})

describe('the status of a job', () => {
  test('is from memory while it runs, and from its file when it is complete', async () => {
    await store.writeStatus(UUID, encodeStatus(statusOf('queued')))
    running.set(UUID, statusOf('running'))
    const status = async () => ((await (await fetch(`${url}/${UUID}/status.json`)).json()) as StatusDocument).state
    expect(await status()).toBe('running')
    running.set(UUID, statusOf('complete'))
    expect(await status()).toBe('queued')
    await publish()
    expect(await status()).toBe('complete')
    running.clear()
    expect(await status()).toBe('complete')
  })

  test('is 200 for a job that failed', async () => {
    await publish({ 'stderr.log': 'oops' }, null)
    const answer = await fetch(`${url}/${UUID}/status.json`)
    expect([answer.status, answer.headers.get('content-type')]).toEqual([200, 'application/json; charset=utf-8'])
    expect(await (await fetch(`${url}/${UUID}/stderr.log`)).text()).toBe('oops')
  })
})

describe('a file of a job', () => {
  test('comes with its content type and cannot run anything in a browser', async () => {
    const types: Record<string, string> = {
      'plot.svg': 'image/svg+xml',
      'table.csv': 'text/csv; charset=utf-8',
      'extra.json': 'application/json; charset=utf-8',
      'stdout.log': 'text/plain; charset=utf-8',
      'photo.PNG': 'image/png',
      'page.html': 'text/html; charset=utf-8',
      'data.zzz': 'application/octet-stream',
      plain: 'application/octet-stream',
      'empty.txt': 'text/plain; charset=utf-8',
    }
    const body = (name: string) => (name === 'empty.txt' ? '' : `content of ${name}`)
    await publish(Object.fromEntries(Object.keys(types).map((name) => [name, body(name)])))
    for (const [name, type] of Object.entries(types)) {
      const answer = await fetch(`${url}/${UUID}/${name}`)
      expect([name, answer.status, answer.headers.get('content-type')]).toEqual([name, 200, type])
      expect(answer.headers.get('x-content-type-options')).toBe('nosniff')
      expect(answer.headers.get('cache-control')).toBe('no-cache')
      expect(answer.headers.get('accept-ranges')).toBe('bytes')
      const policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"
      expect(answer.headers.get('content-security-policy')).toBe(policy)
      expect(await answer.text()).toBe(body(name))
    }
  })

  test('may have any name that a disk takes', async () => {
    const names = ["a b'c.txt", '!bang.txt', '#hash?.txt', 'ünï-日本.txt', 'con%41.txt', '[x]{a,b}(1).txt', 'a\\b.txt']
    names.push('new\nline.txt', '**', '~', 'a..b', 'x'.repeat(255), 'ü'.repeat(127), '"quoted".txt', ' ', 'index.html')
    await publish(Object.fromEntries(names.map((name) => [name, name])))
    for (const name of names) {
      const answer = await fetch(`${url}/${UUID}/${encodeURIComponent(name)}`)
      expect([name, answer.status]).toEqual([name, 200])
      expect(answer.headers.get('content-type')).toMatch(/^(text|application)\//)
      expect(await answer.text()).toBe(name)
    }
    expect(errors).toEqual([])
  })

  test('is 404 before the result is committed; its logs are not', async () => {
    await publish({ 'plot.svg': '<svg/>', 'stdout.log': 'out' }, null)
    expect((await fetch(`${url}/${UUID}/stdout.log`)).status).toBe(200)
    const answer = await fetch(`${url}/${UUID}/plot.svg`)
    expect(answer.status).toBe(404)
    expect(await answer.json()).toMatchObject({ error: 'not_found', uuid: UUID })
  })

  test('is given in part to who asks for a range', async () => {
    const body = randomBytes(200_000)
    await publish({ 'data.bin': body, 'empty.bin': '' })
    const get = (range: string, more = {}) => fetch(`${url}/${UUID}/data.bin`, { headers: { Range: range, ...more } })
    const bytes = async (answer: Response) => Buffer.from(await answer.arrayBuffer())

    const part = await get('bytes=1000-1999')
    expect([part.status, part.headers.get('content-range')]).toEqual([206, 'bytes 1000-1999/200000'])
    expect(part.headers.get('content-length')).toBe('1000')
    expect((await bytes(part)).equals(body.subarray(1000, 2000))).toBe(true)
    expect((await bytes(await get('bytes=-10'))).equals(body.subarray(-10))).toBe(true)
    expect((await bytes(await get('bytes=199999-'))).equals(body.subarray(-1))).toBe(true)

    const etag = part.headers.get('etag') ?? ''
    expect((await get('bytes=0-9', { 'If-Range': etag })).status).toBe(206)
    const whole = await get('bytes=0-9', { 'If-Range': '"another"' })
    expect(whole.status).toBe(200)
    expect((await bytes(whole)).equals(body)).toBe(true)
    expect((await get('bytes=0-9,20-29')).status).toBe(200)
    expect((await get('nonsense')).status).toBe(200)

    const beyond = await get('bytes=200000-')
    expect([beyond.status, beyond.headers.get('content-range')]).toEqual([416, 'bytes */200000'])
    expect(await beyond.json()).toMatchObject({ error: 'range_not_satisfiable' })
    const empty = await fetch(`${url}/${UUID}/empty.bin`, { headers: { Range: 'bytes=0-' } })
    expect([empty.status, await empty.text()]).toEqual([200, ''])
  })

  test('survives enormous Range headers', async () => {
    await publish({ 'data.bin': 'x'.repeat(1000) })
    const many = `bytes=${Array.from({ length: 1500 }, (_, i) => `${i}-${i}`).join(',')}`
    expect(codeOf(await rawGet(`/${UUID}/data.bin`, `Range: ${many}\r\n`))).toBe(200)
    expect(codeOf(await rawGet(`/${UUID}/data.bin`, `Range: bytes=${'9'.repeat(9000)}-\r\n`))).toBe(416)
    const answer = await rawGet(`/${UUID}/data.bin`, `Range: bytes=${'0-1,'.repeat(20_000)}\r\n`)
    expect(codeOf(answer)).toBe(431)
    expect(answer).toContain('"error":"headers_too_large"')
    expect((await fetch(`${url}/healthz`)).status).toBe(200)
  })

  test('goes on to a reader when its name is taken away or replaced in the middle', async () => {
    const body = randomBytes(20_000_000)
    await publish({ 'big.bin': body })
    const answer = await fetch(`${url}/${UUID}/big.bin`)
    rmSync(join(jobDir(), 'big.bin'))
    const hash = createHash('sha256')
    for await (const chunk of answer.body ?? []) hash.update(chunk)
    expect(hash.digest('hex')).toBe(createHash('sha256').update(body).digest('hex'))
    expect((await fetch(`${url}/${UUID}/big.bin`)).status).toBe(404)
  })

  test('that shrinks in the middle breaks the connection, and nothing else', async () => {
    await publish({ 'big.bin': Buffer.alloc(40_000_000) })
    const answer = await fetch(`${url}/${UUID}/big.bin`)
    truncateSync(join(jobDir(), 'big.bin'), 1000)
    await expect(answer.arrayBuffer()).rejects.toThrow()
    expect((await fetch(`${url}/healthz`)).status).toBe(200)
  })

  test('is closed when the reader goes away', async ({ skip }) => {
    if (process.platform !== 'linux') return skip()
    await publish({ 'big.bin': Buffer.alloc(40_000_000) })
    const held = () => openPaths().filter((path) => path.includes(UUID))
    const socket = connect(server.port, '127.0.0.1', () =>
      socket.write(`GET /${UUID}/big.bin HTTP/1.1\r\nHost: x\r\n\r\n`),
    )
    await new Promise<void>((resolve) => {
      socket.once('data', () => {
        socket.pause()
        resolve()
      })
    })
    expect(held()).toHaveLength(1)
    socket.destroy()
    await vi.waitFor(() => expect(held()).toEqual([]))
    expect(errors).toEqual([])
  })
})

/** Files that this process, which the server is in, has open. */
function openPaths(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      return [] // closed since the listing
    }
  })
}

describe('a client that has a copy', () => {
  test.each(['', '/result.json', '/status.json', '/plot.svg'])('gets 304 for <uuid>%s', async (path) => {
    await publish({ 'plot.svg': '<svg/>' })
    const first = await fetch(`${url}/${UUID}${path}`)
    const etag = first.headers.get('etag') ?? ''
    const time = first.headers.get('last-modified') ?? ''
    for (const headers of [
      { 'If-None-Match': etag },
      { 'If-None-Match': `"x", W/${etag}` },
      { 'If-Modified-Since': time },
    ]) {
      for (const method of ['GET', 'HEAD']) {
        const answer = await fetch(`${url}/${UUID}${path}`, { method, headers: Object.entries(headers) })
        expect([answer.status, answer.headers.get('etag'), await answer.text()]).toEqual([304, etag, ''])
        expect(answer.headers.get('access-control-allow-origin')).toBe('*')
      }
    }
    const stale = await fetch(`${url}/${UUID}${path}`, {
      headers: { 'If-None-Match': '"old"', 'If-Modified-Since': time },
    })
    expect(stale.status).toBe(200)
  })

  test('gets the new result when the old one was removed and the job ran again', async () => {
    await publish()
    const etag = (await fetch(`${url}/${UUID}`)).headers.get('etag') ?? ''
    rmSync(jobDir(), { recursive: true })
    await publish({}, RESULT.replace('1.10', '1.20'))
    const answer = await fetch(`${url}/${UUID}`, { headers: { 'If-None-Match': etag } })
    expect([answer.status, await answer.text()]).toEqual([200, RESULT.replace('1.10', '1.20')])
  })
})

describe('methods', () => {
  test('HEAD gives the headers of GET and no body', async () => {
    await publish({ 'plot.svg': '<svg/>' })
    for (const path of [`/${UUID}`, `/${UUID}/plot.svg`, `/${UUID}/status.json`, `/${OTHER}`, '/healthz']) {
      const [get, head] = await Promise.all([fetch(url + path), fetch(url + path, { method: 'HEAD' })])
      expect(head.status).toBe(get.status)
      const headers = (answer: Response) =>
        Object.fromEntries([...answer.headers].filter(([name]) => !['date', 'connection', 'keep-alive'].includes(name)))
      expect(headers(head)).toEqual(headers(get))
      expect(await head.text()).toBe('')
      await get.text()
    }
    const answer = await raw(`HEAD /${UUID}/plot.svg HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)
    expect(answer).toMatch(/\r\n\r\n$/)
  })

  test.each(['POST', 'PUT', 'DELETE', 'PATCH', 'PROPFIND'])('%s is refused with what is allowed', async (method) => {
    await publish()
    const body = method === 'DELETE' || method === 'PROPFIND' ? undefined : 'x'.repeat(100_000)
    const answer = await fetch(`${url}/${UUID}`, { method, ...(body ? { body } : {}) })
    expect([answer.status, answer.headers.get('allow')]).toEqual([405, 'GET, HEAD, OPTIONS'])
    expect(await answer.json()).toMatchObject({ error: 'method_not_allowed' })
    expect((await fetch(`${url}/${UUID}`)).status).toBe(200)
  })

  test('a browser of any site may read', async () => {
    const preflight = await fetch(`${url}/${UUID}`, { method: 'OPTIONS', headers: { Origin: 'https://example.org' } })
    expect(preflight.status).toBe(204)
    expect(preflight.headers.get('access-control-allow-origin')).toBe('*')
    expect(preflight.headers.get('access-control-allow-methods')).toBe('GET, HEAD, OPTIONS')
    expect(preflight.headers.get('access-control-allow-headers')).toMatch(/Range, If-None-Match/)
    for (const path of ['/', `/${UUID}`, '/healthz', `/${UUID}/x`, '/%zz']) {
      const answer = await fetch(url + path)
      expect(answer.headers.get('access-control-allow-origin')).toBe('*')
      expect(answer.headers.get('access-control-expose-headers')).toMatch(
        /Content-Range, ETag, Last-Modified, Retry-After/,
      )
      await answer.text()
    }
  })
})

describe('other paths', () => {
  test('/healthz tells what it is told', async () => {
    const answer = await fetch(`${url}/healthz`)
    expect([answer.status, answer.headers.get('cache-control')]).toEqual([200, 'no-store'])
    expect(await answer.json()).toEqual({ status: 'ok', slots: 4 })
  })

  test('/ tells the routes and no uuid', async () => {
    await publish()
    const answer = await fetch(`${url}/`)
    expect([answer.status, answer.headers.get('content-type')]).toEqual([404, 'application/json; charset=utf-8'])
    const text = await answer.text()
    expect(JSON.parse(text)).toMatchObject({ error: 'not_found', routes: expect.arrayContaining(['/<uuid>/<file>']) })
    expect(text).not.toContain(UUID.slice(0, 8))
  })

  test('a uuid in upper case or with dashes gets a hint', async () => {
    const dashed = UUID.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
    for (const written of [UUID.toUpperCase(), dashed, dashed.toUpperCase()]) {
      const answer = await fetch(`${url}/${written}`)
      expect(answer.status).toBe(404)
      expect(((await answer.json()) as { message: string }).message).toContain(`/${UUID}`)
    }
  })

  test('what came is repeated only short and clean', async () => {
    const answer = await rawGet(`/%3Cscript%3Ealert(1)%3C/script%3E${'y'.repeat(500)}`)
    expect(codeOf(answer)).toBe(404)
    expect(answer).not.toContain('<script')
    expect(answer).not.toContain('y'.repeat(100))
    const long = await rawGet(`/${'y'.repeat(3000)}`)
    expect(codeOf(long)).toBe(414)
    expect(long.length).toBeLessThan(1500)
  })
})

describe('no way out of the directory of a job', () => {
  const secret = ['secret.txt', '..%2fsecret.txt', '../secret.txt']
  const tricks = [
    `/${UUID}/../../../secret.txt`,
    `/${UUID}/..%2f..%2f..%2fsecret.txt`,
    `/${UUID}/%2e%2e/%2e%2e/%2e%2e/secret.txt`,
    `/${UUID}/%2e%2e%2f%2e%2e%2f%2e%2e%2fsecret.txt`,
    `/${UUID}/..%252f..%252f..%252fsecret.txt`,
    `/${UUID}/..%c0%af..%c0%afsecret.txt`,
    `/${UUID}/..\\..\\..\\secret.txt`,
    `/${UUID}/..%5c..%5c..%5csecret.txt`,
    `/${UUID}/plot.svg%00`,
    `/${UUID}/%00`,
    `/${UUID}/plot.svg%00.txt`,
    `/${UUID}//plot.svg`,
    `//${UUID}/plot.svg`,
    `/${UUID}/plot.svg/`,
    `/${UUID}/./plot.svg`,
    `/${UUID}/.`,
    `/${UUID}/..`,
    `/${UUID}/link`,
    `/${UUID}/inner-link`,
    `/${UUID}/folder`,
    `/${UUID}/folder/file.txt`,
    `/${UUID}/folder%2ffile.txt`,
    `/${UUID}/.hidden`,
    `/${UUID}/%2ehidden`,
    `/${UUID}/input.json`,
    `/${UUID.slice(0, 2)}/${UUID}/plot.svg`,
    '/../secret.txt',
    '/..%2fsecret.txt',
    '/.work/run/file.txt',
    '/.state/jobs.db',
    '/.work',
    '/%2ework/run/file.txt',
    `/${UUID}/..%2f..%2f..%2f.work%2frun%2ffile.txt`,
    '/etc/passwd',
    '//etc/passwd',
    'secret.txt',
    '../secret.txt',
    'http://example.org/secret.txt',
    `http://example.org/${UUID}/plot.svg`,
    '\\secret.txt',
    '/%',
    '/%zz',
    `/${UUID}/%e0%a4`,
    `/${UUID}/%`,
    '*',
    '/?',
    '/;',
  ]

  beforeEach(async () => {
    await publish({ 'plot.svg': 'PLOT' })
    const results = join(top, 'results')
    for (const dir of ['.work/run', '.state']) mkdirSync(join(results, dir), { recursive: true })
    writeFileSync(join(results, '.work/run/file.txt'), 'SECRET')
    writeFileSync(join(results, '.state/jobs.db'), 'SECRET')
    writeFileSync(join(jobDir(), '.hidden'), 'SECRET')
    writeFileSync(join(jobDir(), 'input.json'), 'SECRET')
    mkdirSync(join(jobDir(), 'folder'))
    writeFileSync(join(jobDir(), 'folder', 'file.txt'), 'SECRET')
    symlinkSync(join(top, 'secret.txt'), join(jobDir(), 'link'))
    symlinkSync('plot.svg', join(jobDir(), 'inner-link'))
    for (const name of secret.slice(0, 1)) symlinkSync(join(top, name), join(results, name))
  })

  test.each(tricks)('%s', async (target) => {
    for (const headers of ['', 'Accept: application/json\r\n', 'Range: bytes=0-2\r\n']) {
      const answer = await rawGet(target, headers)
      expect(codeOf(answer)).toBeGreaterThanOrEqual(400)
      expect(codeOf(answer)).toBeLessThan(405)
      expect(answer).not.toMatch(/SECRET|PLOT|root:/)
      expect(answer).toMatch(/content-type: application\/json/i)
      expect(JSON.parse(answer.slice(answer.indexOf('\r\n\r\n') + 4))).toHaveProperty('error')
      expect(answer).not.toContain(top)
    }
    expect(errors).toEqual([])
  })

  test('malformed percent-encoding is 400', async () => {
    for (const target of ['/%', '/%zz', `/${UUID}/%e0%a4`]) expect(codeOf(await rawGet(target))).toBe(400)
  })

  test('the plain path is 200', async () => {
    expect(codeOf(await rawGet(`/${UUID}/plot.svg`))).toBe(200)
    expect(codeOf(await rawGet(`/${UUID}/%70lot.svg?..%2f`))).toBe(200)
  })
})

describe('the server', () => {
  test('answers what is no HTTP with 400 in JSON', async () => {
    for (const text of ['hello\r\n\r\n', '\0\0\0\0\r\n\r\n', 'GET / HTTP/9.9\r\n\r\n', 'GET /a b c HTTP/1.1\r\n\r\n']) {
      const answer = await raw(text)
      expect(codeOf(answer)).toBe(400)
      expect(answer).toContain('"error":"bad_request"')
    }
  })

  test('answers 500 in JSON when the store fails, says nothing of the cause, and goes on', async () => {
    await publish({ 'plot.svg': '<svg/>' })
    renameSync(join(top, 'results'), join(top, 'moved'))
    for (const path of [`/${UUID}`, `/${UUID}/status.json`, `/${UUID}/plot.svg`]) {
      const answer = await fetch(url + path)
      const text = await answer.text()
      expect([answer.status, JSON.parse(text).error]).toEqual([500, 'internal_error'])
      expect(text).not.toContain(top)
    }
    expect(errors).toHaveLength(3)
    expect(errors[0]).toMatchObject({ name: 'StoreError', code: 'unavailable' })
    renameSync(join(top, 'moved'), join(top, 'results'))
    expect((await fetch(`${url}/${UUID}`)).status).toBe(200)
  })

  test('answers 500 for a status document that cannot be read', async () => {
    await store.writeStatus(UUID, '{"half":')
    const answer = await fetch(`${url}/${UUID}`)
    expect([answer.status, answer.headers.get('retry-after')]).toEqual([500, null])
    expect(await answer.json()).toMatchObject({ error: 'internal_error' })
  })

  test('serves 404 for a file that vanishes between the look and the opening', async () => {
    await publish({ 'plot.svg': '<svg/>' })
    const forgetful: LocalStore = {
      ...store,
      find: async (uuid, name) => {
        const found = await store.find(uuid, name)
        if (found) rmSync(found.path)
        return found
      },
    }
    const second = await start(forgetful)
    const answer = await fetch(`http://127.0.0.1:${second.port}/${UUID}/plot.svg`)
    expect([answer.status, ((await answer.json()) as { error: string }).error]).toEqual([404, 'not_found'])
    await second.close()
  })

  test('answers 100 requests at the same time, each with its own bytes', async () => {
    const names = Array.from({ length: 20 }, (_, i) => `file-${i}.txt`)
    await publish(Object.fromEntries(names.map((name) => [name, `${name} `.repeat(10_000)])))
    const asked = Array.from({ length: 100 }, (_, i) => names[i % names.length] ?? '')
    const texts = await Promise.all(asked.map(async (name) => (await fetch(`${url}/${UUID}/${name}`)).text()))
    expect(texts).toEqual(asked.map((name) => `${name} `.repeat(10_000)))
    expect(errors).toEqual([])
  })

  test('rejects with the code of the system when its port is in use', async () => {
    await expect(start(store, server.port)).rejects.toMatchObject({ code: 'EADDRINUSE', syscall: 'listen' })
  })

  test('tells the host and port that it listens on', async () => {
    expect(server.host).toBe('127.0.0.1')
    expect(server.port).toBeGreaterThan(0)
  })

  test('closes idle connections at once and lets an answer that is under way end', async () => {
    await publish({ 'big.bin': Buffer.alloc(8_000_000) })
    const second = await start()
    const idle = connect(second.port, '127.0.0.1')
    await new Promise((resolve) => idle.once('connect', resolve))
    idle.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
    await new Promise((resolve) => idle.once('data', resolve))
    const busy = await fetch(`http://127.0.0.1:${second.port}/${UUID}/big.bin`)
    const started = performance.now()
    const idleClosed = new Promise((resolve) => idle.once('close', resolve))
    const closed = second.close()
    await idleClosed
    expect((await busy.arrayBuffer()).byteLength).toBe(8_000_000)
    await closed
    expect(performance.now() - started).toBeLessThan(1_900)
    await expect(fetch(`http://127.0.0.1:${second.port}/healthz`)).rejects.toThrow()
  })

  test('ends an answer that nobody reads after two seconds when it closes', async () => {
    await publish({ 'big.bin': Buffer.alloc(40_000_000) })
    const second = await start()
    const stuck = request({ host: '127.0.0.1', port: second.port, path: `/${UUID}/big.bin` })
    stuck.on('error', () => {})
    const response = await new Promise<NodeJS.ReadableStream>((resolve) => stuck.once('response', resolve).end())
    response.on('error', () => {})
    const started = performance.now()
    await second.close()
    const took = performance.now() - started
    expect(took).toBeGreaterThan(1_500)
    expect(took).toBeLessThan(4_000)
    stuck.destroy()
    expect(readdirSync(jobDir())).toContain('big.bin')
  })
})
