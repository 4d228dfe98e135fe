import { mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { makeDocument, Shelf } from '../../src/http/document.ts'
import { type ResultServer, startResultServer } from '../../src/http/server.ts'
import { DOCUMENT_FORMAT, encodeStatus } from '../../src/job/result.ts'
import { type LocalStore, openLocalStore, type StoredFile } from '../../src/store/store.ts'

const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'
const RESULT = '{"result":1.10,"text":"Zürich"}\n'
/** of the same length */
const OTHER = '{"result":1.20,"text":"Zürich"}\n'
/** of the connection, and of the moment */
const HOPS = ['connection', 'keep-alive', 'date']
const TIMESTAMP = '2024-05-06T07:08:09.750Z'
const STATUS = encodeStatus({
  format: DOCUMENT_FORMAT,
  uuid: UUID,
  type: 'forecast',
  state: 'complete',
  timestamp: TIMESTAMP,
  attempts: [],
})

let top: string
let dir: string
let path: string
let store: LocalStore
let server: ResultServer
let url: string

beforeEach(async () => {
  top = mkdtempSync(join(tmpdir(), 'qworker-document-'))
  dir = join(top, 'results', UUID.slice(0, 2), UUID)
  path = join(dir, 'result.json')
  mkdirSync(join(top, 'results'))
  store = await openLocalStore(join(top, 'results'))
  await store.publish({ uuid: UUID, files: new Map(), status: STATUS, result: RESULT })
  await serve(store)
  // What is published just now is read each time: its next change might bear the same time.
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 60_000 })
})

afterEach(async () => {
  vi.useRealTimers()
  await server.close()
  rmSync(top, { recursive: true, force: true })
})

async function serve(used: LocalStore): Promise<void> {
  const onError = (error: unknown) => {
    throw error
  }
  server = await startResultServer({
    store: used,
    host: '127.0.0.1',
    port: 0,
    running: () => undefined,
    health: () => ({}),
    onError,
  })
  url = `http://127.0.0.1:${server.port}/${UUID}`
}

async function get(headers: Record<string, string> = {}, method = 'GET'): Promise<[number, string]> {
  const answer = await fetch(url, { headers, method })
  return [answer.status, await answer.text()]
}

describe('a document that was asked for before', () => {
  test('is not read again while the store says that its file is the same', async () => {
    await server.close()
    // This store sees no change: what is answered can only be from memory.
    await serve({ ...store, find: async (uuid, name, known) => known ?? store.find(uuid, name) })
    expect(await get()).toEqual([200, RESULT])
    writeFileSync(path, OTHER)
    expect(await get()).toEqual([200, RESULT])
  })

  test('is read each time while its file is young', async () => {
    vi.useRealTimers()
    await server.close()
    await serve({ ...store, find: async (uuid, name, known) => known ?? store.find(uuid, name) })
    expect(await get()).toEqual([200, RESULT])
    writeFileSync(path, OTHER)
    expect(await get()).toEqual([200, OTHER])
  })

  test('comes with the same headers, as HEAD and as 304 too', async () => {
    const headersOf = async (method: string, headers: Record<string, string> = {}) =>
      Object.fromEntries([...(await fetch(url, { method, headers })).headers].filter(([name]) => !HOPS.includes(name)))
    const first = await headersOf('GET')
    for (const method of ['GET', 'HEAD']) expect(await headersOf(method)).toEqual(first)
    expect(first['content-length']).toBe(String(Buffer.byteLength(RESULT)))
    expect(await get({}, 'HEAD')).toEqual([200, ''])
    const { etag = '', 'last-modified': time = '' } = first
    expect(await get({ 'If-None-Match': etag })).toEqual([304, ''])
    expect(await get({ 'If-Modified-Since': time })).toEqual([304, ''])
    expect(await get({ 'If-None-Match': '"another"' })).toEqual([200, RESULT])
    expect(await headersOf('GET', { 'If-None-Match': etag })).toMatchObject({
      etag,
      'access-control-allow-origin': '*',
    })
  })

  const changes: [string, () => void, [number, string]][] = [
    ['replaced by one of the same size and time', () => put(OTHER, join(top, 'new.json')), [200, OTHER]],
    ['written in place, and its time set back', () => put(OTHER, path), [200, OTHER]],
    ['removed', () => rmSync(path), [202, STATUS]],
    ['a link to where it was moved to', () => moveAndLink(path), [202, STATUS]],
    ['in a folder that is a link to another', () => linkElsewhere(), [404, expect.stringContaining('unknown_job')]],
    ['gone with its job', () => rmSync(dir, { recursive: true }), [404, expect.stringContaining('unknown_job')]],
  ]

  /** All have the same time. */
  function put(text: string, file: string): void {
    writeFileSync(file, text)
    utimesSync(file, new Date(TIMESTAMP), new Date(TIMESTAMP))
    renameSync(file, path)
  }

  function moveAndLink(name: string): void {
    renameSync(name, join(top, 'moved'))
    symlinkSync(join(top, 'moved'), name)
  }

  function linkElsewhere(): void {
    moveAndLink(dir)
    put(OTHER, join(top, 'new.json'))
  }

  test.each(changes)('is not given when its file is %s', async (_, change, expected) => {
    put(RESULT, path)
    for (let i = 0; i < 2; i++) expect(await get()).toEqual([200, RESULT])
    change()
    for (let i = 0; i < 2; i++) expect(await get()).toEqual(expected)
  })
})

describe('the shelf', () => {
  const file = (name: string, bytes: number, version: string | undefined): StoredFile => ({
    path: name,
    bytes,
    modified: new Date(),
    version,
  })
  const document = (bytes: number) => makeDocument('x'.repeat(bytes), new Date())

  test('lets the oldest go when it is full, and holds no large one', () => {
    const shelf = new Shelf(100_000)
    for (let i = 0; i < 1000; i++) shelf.put(`${i}`, file(`${i}`, 1000, 'v'), document(1000))
    const held = Array.from({ length: 1000 }, (_, i) => i).filter((i) => shelf.get(`${i}`) !== undefined)
    expect(held.at(-1)).toBe(999)
    expect(held.length).toBeGreaterThan(20)
    expect(held.length).toBeLessThan(50)
    expect(held).toEqual(held.map((_, i) => 1000 - held.length + i))
    shelf.put('large', file('large', 70_000, 'v'), document(70_000))
    expect(shelf.get('large')).toBeUndefined()
    expect(shelf.get('999')).toBeDefined()
  })

  test('counts what is replaced, or may be held no longer, as gone', () => {
    const shelf = new Shelf(100_000)
    for (let i = 0; i < 1000; i++) shelf.put('same', file('same', 1000, `${i}`), document(1000))
    shelf.put('other', file('other', 1000, 'v'), document(1000))
    expect(shelf.get('same')?.file.version).toBe('999')
    shelf.put('same', file('same', 1000, undefined), document(1000))
    expect([shelf.get('same'), shelf.get('other')?.file.version]).toEqual([undefined, 'v'])
  })
})
