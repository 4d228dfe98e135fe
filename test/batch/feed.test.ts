import { createReadStream, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { BatchAccount, Position } from '../../src/batch/batch.ts'
import { type Feed, type FeedInput, openFeed } from '../../src/batch/feed.ts'
import { FeedError } from '../../src/batch/state.ts'

function newDir(): string {
  const dir = mkdtempSync(join(tmpdir(), 'feed-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  return dir
}

const LINE = '{"n":0123456}\n'.length
const makeLines = (count: number) =>
  Array.from({ length: count }, (_, i) => `{"n":"${String(i).padStart(5, '0')}"}\n`).join('')
/** Behind so many lines. */
const behind = (line: number): Position => ({ line, offset: line * LINE })

const file = (path: string): FeedInput => ({
  canSeek: true,
  readFrom: (start) => createReadStream(path, { start, highWaterMark: 1000 }),
})
const pipe = (path: string): FeedInput => ({ canSeek: false, readFrom: () => file(path).readFrom(0) })

async function readAll(feed: Feed): Promise<string> {
  let text = ''
  for await (const chunk of feed.chunks) text += chunk
  return text
}

const account = (reached: Position | undefined, isWhole: boolean) =>
  ({ reached, failed: isWhole ? undefined : { line: 0, kind: 'interrupted', message: '' } }) as BatchAccount

/** Reads all, and notes that it came to the place. */
async function runTo(input: FeedInput, statePath: string, reached: Position, isWhole = false): Promise<void> {
  const feed = await openFeed(input, { statePath, isAnew: false })
  await readAll(feed)
  await feed.finish(account(reached, isWhole))
  await feed.close()
}

async function codeOf(promise: Promise<Feed>): Promise<string> {
  const end = await promise.then(
    (feed) => feed.close().then(() => 'opened'),
    (error: unknown) => (error instanceof FeedError ? error.code : String(error)),
  )
  return end
}

describe.each([
  ['file', file],
  ['pipe', pipe],
])('a feed of a %s', (_, input) => {
  // Few bytes, more than one fingerprint, more than two.
  it.each([1, 10, 300, 500, 600, 1000, 2999])('goes on behind line %i with the same uuids', async (line) => {
    const path = join(newDir(), 'jobs')
    writeFileSync(path, makeLines(3000))
    await runTo(input(path), `${path}.feed`, behind(line))
    const first = readFileSync(`${path}.feed`, 'utf8')
    const feed = await openFeed(input(path), { statePath: `${path}.feed`, isAnew: false })
    onTestFinished(() => feed.close())
    expect(feed.start).toEqual(behind(line))
    expect(feed.isDone).toBe(false)
    expect(await readAll(feed)).toBe(makeLines(3000).slice(line * LINE))
    expect(JSON.parse(readFileSync(`${path}.feed`, 'utf8')).seed).toBe(JSON.parse(first).seed)
  })

  it('that came to the end is done, until something comes behind it', async () => {
    const path = join(newDir(), 'jobs')
    writeFileSync(path, makeLines(1000))
    await runTo(input(path), `${path}.feed`, behind(1000), true)
    const done = await openFeed(input(path), { statePath: `${path}.feed`, isAnew: false })
    expect(done.isDone).toBe(true)
    await done.close()
    writeFileSync(path, makeLines(1001))
    const feed = await openFeed(input(path), { statePath: `${path}.feed`, isAnew: false })
    expect(feed.isDone).toBe(false)
    expect(await readAll(feed)).toBe(makeLines(1001).slice(1000 * LINE))
    await feed.close()
    const anew = await openFeed(input(path), { statePath: `${path}.feed`, isAnew: true })
    expect(anew.start).toEqual(behind(0))
    expect(anew.makeUuid(1)).not.toBe(feed.makeUuid(1))
    await anew.close()
  })

  it.each([
    ['is shorter', (text: string) => text.slice(0, -LINE)],
    ['begins otherwise', (text: string) => text.replace('00001', '99999')],
    ['is otherwise before the place', (text: string) => text.replace('00999', '99999')],
    ['lost a line', (text: string) => text.slice(LINE * 500) + makeLines(500)],
    ['is empty', () => ''],
  ])('is refused when the input %s', async (_name, change) => {
    const path = join(newDir(), 'jobs')
    writeFileSync(path, makeLines(1000))
    await runTo(input(path), `${path}.feed`, behind(1000))
    const before = readFileSync(`${path}.feed`, 'utf8')
    writeFileSync(path, change(makeLines(1000)))
    expect(await codeOf(openFeed(input(path), { statePath: `${path}.feed`, isAnew: false }))).toBe('changed')
    expect(readFileSync(`${path}.feed`, 'utf8')).toBe(before)
    expect(await codeOf(openFeed(input(path), { statePath: `${path}.feed`, isAnew: true }))).toBe('opened')
  })

  it('whose last line had no end is refused when that line goes on', async () => {
    const path = join(newDir(), 'jobs')
    writeFileSync(path, 'one\ntwo')
    await runTo(input(path), `${path}.feed`, { line: 2, offset: 7 }, true)
    writeFileSync(path, 'one\ntwo and more\n')
    expect(await codeOf(openFeed(input(path), { statePath: `${path}.feed`, isAnew: false }))).toBe('changed')
  })
})

describe('the state file of a feed', () => {
  it('is there before the first job is put, for its owner alone, and small', async () => {
    const path = join(newDir(), 'jobs')
    writeFileSync(path, makeLines(10))
    const feed = await openFeed(file(path), { statePath: `${path}.feed`, isAnew: false })
    const { mode, size } = statSync(`${path}.feed`)
    expect(mode & 0o777).toBe(0o600)
    expect(size).toBeLessThan(512)
    await feed.close()
    const again = await openFeed(file(path), { statePath: `${path}.feed`, isAnew: false })
    expect(again.makeUuid(7)).toBe(feed.makeUuid(7))
    await again.close()
  })

  it('belongs to one feed at a time, whatever its name is long', async () => {
    for (const name of ['state', 'long-'.repeat(40)]) {
      const path = join(newDir(), name)
      writeFileSync(`${path}.in`, makeLines(10))
      const feed = await openFeed(file(`${path}.in`), { statePath: path, isAnew: false })
      expect(await codeOf(openFeed(file(`${path}.in`), { statePath: path, isAnew: true }))).toBe('busy')
      await feed.close()
      expect(await codeOf(openFeed(file(`${path}.in`), { statePath: path, isAnew: false }))).toBe('opened')
    }
  })

  it.each([
    ['nothing', ''],
    ['no JSON', '{"format":1,'],
    ['another document', '[{"uuid":"x"},{}]'],
    ['a later format', (text: string) => text.replace('"format":1', '"format":2')],
    ['half a seed', (text: string) => text.replace(/"seed":".{16}/, '"seed":"')],
    ['a line below nothing', (text: string) => text.replace('"line":5', '"line":-5')],
    ['more jobs than lines', (text: string) => text.replace('"accepted":0', '"accepted":6')],
    ['no fingerprint', (text: string) => text.replace('"tail":{', '"tale":{')],
  ])('that holds %s is refused, and left as it is', async (_, content) => {
    const path = join(newDir(), 'jobs')
    writeFileSync(path, makeLines(10))
    await runTo(file(path), `${path}.feed`, behind(5))
    const text = typeof content === 'string' ? content : content(readFileSync(`${path}.feed`, 'utf8'))
    writeFileSync(`${path}.feed`, text)
    for (const isAnew of [false, true]) {
      expect(await codeOf(openFeed(file(path), { statePath: `${path}.feed`, isAnew }))).toBe('corrupt')
    }
    expect(readFileSync(`${path}.feed`, 'utf8')).toBe(text)
  })
})

describe('the room that a feed makes', () => {
  async function openOn(lines: number) {
    const path = join(newDir(), 'jobs')
    writeFileSync(path, makeLines(lines))
    const feed = await openFeed(file(path), { statePath: `${path}.feed`, isAnew: false })
    onTestFinished(() => feed.close())
    return feed
  }

  it('is filled up first, then when half of it is taken, and granted in parts', async () => {
    const feed = await openOn(10)
    let waiting = 3
    const asked: number[] = []
    const count = async () => {
      asked.push(waiting)
      // Some are taken between two questions.
      return waiting--
    }
    expect(await feed.makeRoom(10, count)).toBe(7)
    waiting = 10
    expect(await feed.makeRoom(10, count)).toBe(5)
    expect(asked).toEqual([3, 10, 9, 8, 7, 6, 5])
    waiting = 0
    expect(await feed.makeRoom(9000, count)).toBe(4096)
    expect(await feed.makeRoom(9000, count)).toBe(4096)
    expect(await feed.makeRoom(9000, count)).toBe(808)
    expect(asked).toHaveLength(8)
    waiting = 1
    expect(await feed.makeRoom(1, count)).toBe(1)
  })

  it('is not asked for in a hurry while nothing is taken', async () => {
    const feed = await openOn(10)
    let asked = 0
    const startedMs = performance.now()
    await feed.makeRoom(10, async () => (++asked < 6 ? 10 : 0))
    // 100, 200, 400, 800 and 1000 ms.
    expect(performance.now() - startedMs).toBeGreaterThan(2400)
  })

  it('is not made when what was accepted cannot be noted', async () => {
    const feed = await openOn(10)
    feed.advance([{ line: 1 }], behind(1))
    mkdirSync(`${feed.statePath}.tmp`)
    await feed.makeRoom(Number.POSITIVE_INFINITY, async () => 0)
    await expect(feed.makeRoom(Number.POSITIVE_INFINITY, async () => 0)).rejects.toMatchObject({ code: 'unwritable' })
  })
})
