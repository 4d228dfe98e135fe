import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import S3rver from 's3rver'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openS3Store, type S3Options, type S3Store, type Store, StoreError } from '../../src/store/store.ts'

const MIB = 1024 * 1024
const SECRET = 'S3RVER'
const warnings: Error[] = []
const note = (warning: Error) => warnings.push(warning)
const saved = { ...process.env }

let top: string
let s3: S3rver
let options: S3Options
const open: Store[] = []
const servers: Server[] = []

beforeAll(async () => {
  process.on('warning', note)
  for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name]
  process.env.AWS_ACCESS_KEY_ID = SECRET
  process.env.AWS_SECRET_ACCESS_KEY = SECRET
  top = mkdtempSync(join(tmpdir(), 'qworker-s3-'))
  s3 = await startS3('results')
  options = optionsFor(portOf(s3.httpServer))
})

afterAll(async () => {
  process.off('warning', note)
  for (const store of open) await store.close()
  for (const server of servers) await stop(server)
  await stop(s3.httpServer)
  rmSync(top, { recursive: true, force: true })
  process.env = saved
})

async function startS3(bucket: string): Promise<S3rver> {
  const directory = mkdtempSync(join(top, 's3rver-'))
  const made = new S3rver({
    address: '127.0.0.1',
    port: 0,
    silent: true,
    directory,
    configureBuckets: [{ name: bucket }],
  })
  await made.run()
  return made
}

/** A server of which a test knows what it answers. */
async function startServer(listener: RequestListener): Promise<number> {
  const server = createServer(listener)
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return portOf(server)
}

function portOf(server: Server): number {
  return (server.address() as AddressInfo).port
}

function stop(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve())
    server.closeAllConnections()
  })
}

function optionsFor(port: number, more: Partial<S3Options> = {}): S3Options {
  const endpoint = `http://127.0.0.1:${port}`
  return { bucket: 'results', prefix: '', endpoint, region: 'us-east-1', forcePathStyle: true, ...more }
}

async function openStore(more: Partial<S3Options> = {}): Promise<S3Store> {
  const store = await openS3Store({ ...options, ...more })
  open.push(store)
  return store
}

function newUuid(): string {
  return randomBytes(16).toString('hex')
}

function file(content: string | Buffer): string {
  const path = join(top, `source-${newUuid()}`)
  writeFileSync(path, content)
  return path
}

/** An object as any client sees it; s3rver serves signed and unsigned requests alike. */
async function get(key: string): Promise<Response> {
  return fetch(`${options.endpoint}/results/${key}`)
}

async function failureOf(work: Promise<unknown>): Promise<StoreError> {
  const error = await work.then(
    () => undefined,
    (cause: unknown) => cause,
  )
  expect(error).toBeInstanceOf(StoreError)
  return error as StoreError
}

describe('publishing', () => {
  test('stores files and documents with their content types, byte for byte', async () => {
    const store = await openStore()
    expect(await store.check()).toEqual([])
    const uuid = newUuid()
    const noise = randomBytes(100_000)
    const files = new Map([
      ['plot.svg', file('<svg/>')],
      ['stdout.log', file('out\n')],
      ['table.csv', file('a,b\n')],
      ['empty.txt', file('')],
      ['noise', file(noise)],
      ['a name with ünïcode+&%.txt', file('x')],
    ])
    expect(await store.publish({ uuid, files, status: '{"s":1}\n', result: '{"r":"é"}\n' })).toBe(true)
    const types: Record<string, string> = {
      'plot.svg': 'image/svg+xml',
      'stdout.log': 'text/plain; charset=utf-8',
      'table.csv': 'text/csv; charset=utf-8',
      noise: 'application/octet-stream',
      'result.json': 'application/json; charset=utf-8',
      'status.json': 'application/json; charset=utf-8',
      'empty.txt': 'text/plain; charset=utf-8',
      'a name with ünïcode+&%.txt': 'text/plain; charset=utf-8',
    }
    for (const [name, type] of Object.entries(types)) {
      const answer = await get(`${uuid}/${encodeURIComponent(name)}`)
      expect([name, answer.status, answer.headers.get('content-type')]).toEqual([name, 200, type])
      const body = Buffer.from(await answer.arrayBuffer())
      if (name === 'noise') expect(body.equals(noise)).toBe(true)
      if (name === 'empty.txt') expect(body).toHaveLength(0)
    }
    expect(await store.read(uuid, 'result.json')).toBe('{"r":"é"}\n')
    expect(await store.read(uuid, 'status.json')).toBe('{"s":1}\n')
    await store.writeStatus(uuid, '{"s":2}\n')
    expect(await store.read(uuid, 'status.json')).toBe('{"s":2}\n')
  })

  test('asks before it commits, when files and status are stored and no result is', async () => {
    const store = await openStore()
    const uuid = newUuid()
    const codes: Record<string, number> = {}
    const publication = { uuid, files: new Map([['a.txt', file('a')]]), status: 'S', result: `R ${uuid}` }
    let asked = 0
    const look = async (answer: boolean) => {
      if (++asked % 2 === 1) return true
      for (const name of ['a.txt', 'status.json', 'result.json']) codes[name] = (await get(`${uuid}/${name}`)).status
      return answer
    }
    expect(await store.publish(publication, () => look(false))).toBe(false)
    expect(codes).toEqual({ 'a.txt': 200, 'status.json': 200, 'result.json': 404 })
    expect(await store.read(uuid, 'result.json')).toBeUndefined()
    expect(await store.publish(publication, () => look(true))).toBe(true)
    expect(await store.read(uuid, 'result.json')).toBe(`R ${uuid}`)
  })

  test('leaves the result of another host as it is, and takes its own for published', async () => {
    const store = await openStore()
    const uuid = newUuid()
    const first = { uuid, files: new Map([['a.txt', file('first')]]), status: 'S1', result: `1 ${uuid}` }
    expect(await store.publish(first)).toBe(true)
    expect(await store.publish(first)).toBe(true)
    const second = { uuid, files: new Map([['a.txt', file('second')]]), status: 'S2', result: `2 ${uuid}` }
    expect(await store.publish(second)).toBe(false)
    expect(await (await get(`${uuid}/a.txt`)).text()).toBe('first')
    expect(await store.read(uuid, 'result.json')).toBe(`1 ${uuid}`)
  })

  test('stores logs and status, and no result, for an attempt that failed', async () => {
    const store = await openStore()
    const uuid = newUuid()
    expect(await store.publish({ uuid, files: new Map([['stderr.log', file('oops')]]), status: 'S' })).toBe(true)
    expect(await (await get(`${uuid}/stderr.log`)).text()).toBe('oops')
    expect(await store.read(uuid, 'result.json')).toBeUndefined()
  })

  test('puts the prefix before every key', async () => {
    const store = await openStore({ prefix: 'some/where/' })
    const uuid = newUuid()
    await store.publish({ uuid, files: new Map([['a.txt', file('a')]]), status: 'S', result: 'R' })
    for (const name of ['a.txt', 'status.json', 'result.json']) {
      expect((await get(`some/where/${uuid}/${name}`)).status).toBe(200)
      expect((await get(`${uuid}/${name}`)).status).toBe(404)
    }
    expect(await store.read(uuid, 'result.json')).toBe('R')
  })

  test('stores a file of 40 MiB in parts, byte for byte', async () => {
    const store = await openStore()
    const uuid = newUuid()
    const body = randomBytes(40 * MIB + 12_345)
    const used = new Set<string>()
    s3.httpServer.on('request', (request) =>
      used.add(`${request.method} ${/[?&](uploads|partNumber)/.exec(request.url ?? '')?.[1]}`),
    )
    await store.publish({ uuid, files: new Map([['big.bin', file(body)]]), status: 'S', result: 'R' })
    expect(used).toContain('POST uploads')
    expect(used).toContain('PUT partNumber')
    const hash = createHash('sha256')
    for await (const chunk of (await get(`${uuid}/big.bin`)).body ?? []) hash.update(chunk)
    expect(hash.digest('hex')).toBe(createHash('sha256').update(body).digest('hex'))
  })

  test('never publishes what a link of an algorithm points to, and refuses names and uuids that are not ours', async () => {
    const store = await openStore()
    const uuid = newUuid()
    symlinkSync(file('secret'), join(top, 'link'))
    const attempt = (name: string, path: string) =>
      failureOf(store.publish({ uuid, files: new Map([[name, path]]), status: 'S', result: 'R' }))
    expect((await attempt('out.txt', join(top, 'link'))).message).toContain('out.txt cannot be published')
    expect((await attempt('../out.txt', file('x'))).code).toBe('failed')
    expect((await attempt('gone.txt', join(top, 'gone'))).message).toMatch(/gone\.txt .*ENOENT/)
    expect((await failureOf(store.writeStatus('../x', 'S'))).message).toContain('32 lower-case')
    expect(await store.read(uuid, 'status.json')).toBeUndefined()
  })
})

describe('a server in trouble', () => {
  test('that is down is told soon, by publish, read and check', async () => {
    const dying = await startS3('results')
    const port = portOf(dying.httpServer)
    const store = await openStore(optionsFor(port))
    const uuid = newUuid()
    await store.writeStatus(uuid, 'S')
    await stop(dying.httpServer)

    const started = performance.now()
    const big = file(randomBytes(20 * MIB))
    const errors = await Promise.all([
      failureOf(store.publish({ uuid, files: new Map(), status: 'S', result: 'R' })),
      failureOf(store.publish({ uuid, files: new Map([['big.bin', big]]), status: 'S', result: 'R' })),
      failureOf(store.read(uuid, 'status.json')),
    ])
    for (const error of errors) {
      expect(error.code).toBe('unavailable')
      expect(error.message).toContain(`S3 bucket results at 127.0.0.1:${port}`)
      expect(error.message).toContain('not reachable (ECONNREFUSED)')
    }
    expect(await store.check()).toEqual([expect.stringMatching(/not reachable .*check S3_ENDPOINT/)])
    expect(performance.now() - started).toBeLessThan(20_000)
  })

  test('that breaks off in the middle of a large file is told, and the parts are given up', async () => {
    const seen: string[] = []
    const port = await startServer((request, response) => {
      const target = request.url ?? ''
      seen.push(`${request.method} ${target.replace(/^[^?]*/, '').replace(/&?x-id=\w+/, '')}`)
      request.resume().on('end', () => {
        response.statusCode = request.method === 'PUT' ? 500 : request.method === 'GET' ? 404 : 200
        const upload = '<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>'
        response.end(request.method === 'POST' ? upload : '')
      })
    })
    const store = await openStore(optionsFor(port))
    const files = new Map([['big.bin', file(randomBytes(20 * MIB))]])
    const error = await failureOf(store.publish({ uuid: newUuid(), files, status: 'S', result: 'R' }))
    expect(error.code).toBe('unavailable')
    expect(seen).toContainEqual(expect.stringMatching(/^DELETE .*uploadId=u1/))
    expect(seen.join()).not.toContain('result.json')
  })

  test('that answers 503 is tried three times', async () => {
    let requests = 0
    const port = await startServer((request, response) => {
      requests++
      request.resume()
      response.writeHead(503).end()
    })
    const store = await openStore(optionsFor(port))
    const error = await failureOf(store.writeStatus(newUuid(), 'S'))
    expect(error.code).toBe('unavailable')
    expect(error.message).toContain('HTTP 503')
    expect(requests).toBe(3)
  })

  test('that denies access is told without any part of the credentials', async () => {
    const port = await startServer((request, response) => {
      request.resume()
      const body = `<Error><Code>InvalidAccessKeyId</Code><Message>no key ${SECRET}</Message><AWSAccessKeyId>${SECRET}</AWSAccessKeyId></Error>`
      response.writeHead(403, { 'Content-Type': 'application/xml' }).end(request.method === 'HEAD' ? undefined : body)
    })
    const endpoint = `http://user:${SECRET}@127.0.0.1:${port}`
    const store = await openStore(optionsFor(port, { endpoint }))
    const error = await failureOf(store.writeStatus(newUuid(), 'S'))
    expect(error.code).toBe('denied')
    expect(error.message).toContain('access denied (HTTP 403, InvalidAccessKeyId)')
    const problems = await store.check()
    expect(problems).toEqual([expect.stringContaining('check the credentials')])
    expect(`${error.message} ${problems}`).not.toContain(SECRET)
  })
})

describe('the check', () => {
  test('tells that there is no such bucket, and what to do', async () => {
    const store = await openStore({ bucket: 'no-such-bucket' })
    const remedy =
      /bucket no-such-bucket .*there is no such bucket \(HTTP 404\); create it \(aws s3 mb s3:\/\/no-such-bucket\)/
    expect(await store.check()).toEqual([expect.stringMatching(remedy)])
    const error = await failureOf(store.writeStatus(newUuid(), 'S'))
    expect([error.code, error.message]).toEqual(['unavailable', expect.stringMatching(remedy)])
    expect((await failureOf(store.read(newUuid(), 'status.json'))).code).toBe('unavailable')
  })

  test('tells that there are no credentials, and how to give them', async () => {
    const { AWS_ACCESS_KEY_ID: _id, AWS_SECRET_ACCESS_KEY: _key, ...others } = process.env
    const before = process.env
    const nowhere = join(top, 'nowhere')
    process.env = {
      ...others,
      AWS_EC2_METADATA_DISABLED: 'true',
      AWS_SHARED_CREDENTIALS_FILE: nowhere,
      AWS_CONFIG_FILE: nowhere,
    }
    try {
      const store = await openStore()
      expect(await store.check()).toEqual([expect.stringMatching(/no credentials were found; set AWS_ACCESS_KEY_ID/)])
    } finally {
      process.env = before
    }
  })
})

/** A bucket of one object, which may keep what it has, change it, or live in another hour. */
async function startOdd(odd: { keeps?: boolean; changes?: boolean; aheadMs?: number }) {
  const objects = new Map<string, Buffer>()
  const port = await startServer((request, response) => {
    const key = request.url?.split('?')[0] ?? ''
    const chunks: Buffer[] = []
    response.setHeader('Date', new Date(Date.now() + (odd.aheadMs ?? 0)).toUTCString())
    request
      .on('data', (chunk) => chunks.push(chunk))
      .on('end', () => {
        if (request.method === 'PUT') objects.set(key, Buffer.concat(chunks))
        if (request.method === 'DELETE' && odd.keeps) response.statusCode = 403
        else if (request.method === 'DELETE') objects.delete(key)
        response.end(request.method === 'GET' ? (odd.changes ? 'other' : objects.get(key)) : undefined)
      })
  })
  return { objects, store: await openStore({ endpoint: `http://127.0.0.1:${port}`, prefix: 'prod/' }) }
}

describe('the probe', () => {
  test('writes, reads and removes an object below the prefix, and reads the clock', async () => {
    const { store, objects } = await startOdd({})
    const probe = await store.probe()
    expect(probe).toMatchObject({ problems: [], left: undefined })
    expect(Math.abs(probe.clockAheadMs ?? Number.NaN)).toBeLessThan(60_000)
    expect([...objects]).toEqual([])
    const real = await openStore({ prefix: 'probe/' })
    expect(await real.probe()).toMatchObject({ problems: [], left: undefined })
    const listing = await (await fetch(`${options.endpoint}/results?list-type=2&prefix=probe/`)).text()
    expect(listing).toContain('<KeyCount>0</KeyCount>')
  })

  test('that may not remove says what is left, which is no problem for a worker', async () => {
    const { store, objects } = await startOdd({ keeps: true })
    const { problems, left } = await store.probe()
    expect(problems).toEqual([])
    expect(left?.key).toMatch(/^prod\/\.qworker-check-[0-9a-f]{16}$/)
    expect(left?.why).toMatch(/could not remove prod\/.*access denied \(HTTP 403/)
    expect([...objects.keys()]).toEqual([`/results/${left?.key}`])
  })

  test('that reads something else than it wrote says so', async () => {
    const { store } = await startOdd({ changes: true })
    expect((await store.probe()).problems).toEqual([expect.stringMatching(/comes back changed/)])
  })

  test('measures a clock that is far off', async () => {
    const { store } = await startOdd({ aheadMs: -7_200_000 })
    const { clockAheadMs = 0 } = await store.probe()
    expect(Math.round(clockAheadMs / 60_000)).toBe(-120)
  })

  test('finds what the check finds', async () => {
    const store = await openStore({ bucket: 'no-such-bucket' })
    const { problems, left } = await store.probe()
    expect([problems, left]).toEqual([[expect.stringMatching(/there is no such bucket/)], undefined])
  })
})

test('nothing of the SDK warns about this version of Node', () => {
  expect(warnings.filter(({ message }) => /AWS|NodeVersion/.test(message))).toEqual([])
})
