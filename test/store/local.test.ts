import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { type LocalStore, openLocalStore, StoreError } from '../../src/store/store.ts'
import { leaveOut, PROJECT } from '../support/installation.ts'

const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'

let top: string
let base: string
let scratch: string
let store: LocalStore
const mounts: string[] = []

beforeEach(async () => {
  top = mkdtempSync(join(tmpdir(), 'qworker-local-'))
  base = join(top, 'results')
  scratch = join(top, 'scratch')
  mkdirSync(base)
  mkdirSync(scratch)
  store = await openLocalStore(base)
})

afterEach(async () => {
  await store.close()
  for (const point of mounts.splice(0)) execFileSync('umount', [point])
  rmSync(top, { recursive: true, force: true })
})

/** A store whose publisher has a folder of its own on the same disk. */
function openAside(): Promise<LocalStore> {
  const staging = join(top, 'aside')
  mkdirSync(staging)
  return openLocalStore(base, { identity: '', stateOf: () => 'unknown', staging })
}

function jobDir(uuid = UUID): string {
  return join(base, uuid.slice(0, 2), uuid)
}

/** Files in the scratch directory, as a publication takes them. */
function files(contents: Record<string, string | Buffer>): Map<string, string> {
  const made = new Map<string, string>()
  for (const [name, content] of Object.entries(contents)) {
    const path = join(scratch, `${randomBytes(4).toString('hex')}-${made.size}`)
    writeFileSync(path, content)
    made.set(name, path)
  }
  return made
}

/** Nothing also where there is no such directory. */
function contents(dir = jobDir()): Record<string, string> {
  const names = existsSync(dir) ? readdirSync(dir) : []
  return Object.fromEntries(
    names.sort().map((name) => {
      const path = join(dir, name)
      return [name, lstatSync(path).isSymbolicLink() ? readlinkSync(path) : readFileSync(path, 'utf8')]
    }),
  )
}

async function failureOf(work: Promise<unknown>): Promise<StoreError> {
  const error = await work.then(
    () => undefined,
    (cause: unknown) => cause,
  )
  expect(error).toBeInstanceOf(StoreError)
  return error as StoreError
}

/** False, with the reason printed, where mounting is not permitted. */
function mountAt(point: string, args: string[]): boolean {
  mkdirSync(point, { recursive: true })
  try {
    execFileSync('mount', args, { stdio: 'pipe' })
  } catch (error) {
    console.log(`not tested: nothing can be mounted here (${String(error).trim().split('\n').at(-1)})`)
    return false
  }
  mounts.push(point)
  return true
}

function mountTmpfs(point: string, options: string): boolean {
  return mountAt(point, ['-t', 'tmpfs', '-o', options, 'none', point])
}

describe.each(['nothing aside', 'a folder aside'])('publishing with %s', (place) => {
  beforeEach(async () => {
    if (place === 'a folder aside') store = await openAside()
  })

  test('moves files in and writes both documents', async () => {
    const sources = files({ 'forecast.svg': '<svg/>', 'stdout.log': '{}', 'stderr.log': '' })
    expect(await store.publish({ uuid: UUID, files: sources, status: 'S', result: 'R' })).toBe(true)
    expect(contents()).toEqual({
      'forecast.svg': '<svg/>',
      'result.json': 'R',
      'status.json': 'S',
      'stderr.log': '',
      'stdout.log': '{}',
    })
    expect(readdirSync(scratch)).toEqual([])
    expect(await store.read(UUID, 'result.json')).toBe('R')
    expect(await store.read(UUID, 'status.json')).toBe('S')
  })

  test('asks before it commits, when no result is there', async () => {
    let seen: Record<string, string> = {}
    const published = await store.publish(
      { uuid: UUID, files: files({ 'a.csv': 'a' }), status: 'S', result: 'R' },
      async () => {
        seen = Object.fromEntries(Object.entries(contents()).filter(([name]) => !name.startsWith('.')))
        return true
      },
    )
    expect(published).toBe(true)
    expect(seen).toEqual(place === 'nothing aside' ? { 'a.csv': 'a', 'status.json': 'S' } : {})
  })

  test('commits nothing when the question is answered with no', async () => {
    const publication = () => ({ uuid: UUID, files: files({ 'a.csv': 'a' }), status: 'S', result: 'R' })
    expect(await store.publish(publication(), async () => false)).toBe(false)
    expect(contents()).toEqual({})
    // A directory is there now.
    mkdirSync(jobDir(), { recursive: true })
    let asked = 0
    expect(await store.publish(publication(), async () => ++asked === 1)).toBe(false)
    expect(contents()).toEqual({ 'a.csv': 'a', 'status.json': 'S' })
    expect(await store.find(UUID, 'a.csv')).toBeUndefined()
  })

  test('asks before an attempt that failed changes anything', async () => {
    await store.publish({ uuid: UUID, files: files({ 'stderr.log': 'newer' }), status: 'S2' })
    const stale = { uuid: UUID, files: files({ 'stderr.log': 'stale' }), status: 'S1' }
    expect(await store.publish(stale, async () => false)).toBe(false)
    expect(contents()).toEqual({ 'status.json': 'S2', 'stderr.log': 'newer' })
  })

  test('lets an error of the question through, and commits nothing', async () => {
    const publication = { uuid: UUID, files: files({}), status: 'S', result: 'R' }
    const asking = async (): Promise<boolean> => {
      throw new Error('the broker is gone')
    }
    await expect(store.publish(publication, asking)).rejects.toThrow('the broker is gone')
    expect(contents()).toEqual({})
  })

  test('writes logs and status, and no result, for an attempt that failed', async () => {
    expect(await store.publish({ uuid: UUID, files: files({ 'stderr.log': 'oops' }), status: 'S1' })).toBe(true)
    expect(contents()).toEqual({ 'status.json': 'S1', 'stderr.log': 'oops' })
    expect(await store.read(UUID, 'result.json')).toBeUndefined()
  })

  test('removes what an earlier, half-done publication left', async () => {
    await store.publish({ uuid: UUID, files: files({ 'old.csv': '1', 'stdout.log': '1' }), status: 'S1' })
    const dead = join(jobDir(), '.0123456789abcdef.tmp')
    writeFileSync(dead, 'half')
    utimesSync(dead, 1, 1)
    await store.publish({ uuid: UUID, files: files({ 'new.csv': '2', 'stdout.log': '2' }), status: 'S2', result: 'R' })
    expect(contents()).toEqual({ 'new.csv': '2', 'result.json': 'R', 'status.json': 'S2', 'stdout.log': '2' })
  })

  test('keeps a committed result when a later attempt brings none', async () => {
    await store.publish({ uuid: UUID, files: files({ 'stdout.log': 'good' }), status: 'complete', result: 'R' })
    const late = files({ 'stdout.log': 'bad' })
    expect(await store.publish({ uuid: UUID, files: late, status: 'failed' })).toBe(false)
    expect(contents()).toEqual({ 'result.json': 'R', 'status.json': 'complete', 'stdout.log': 'good' })
    await store.writeStatus(UUID, 'complete, and on S3')
    expect(await store.read(UUID, 'status.json')).toBe('complete, and on S3')
    expect(await store.read(UUID, 'result.json')).toBe('R')
  })

  test('never replaces a committed result: the first one stays', async () => {
    await store.publish({ uuid: UUID, files: files({ 'a.csv': '1', 'b.csv': '1' }), status: 'S1', result: 'R1' })
    const first = contents()
    const lost = { uuid: UUID, files: files({ 'a.csv': 'lost' }), status: 'lost', result: 'lost' }
    expect(await store.publish(lost, async () => false)).toBe(false)
    expect(contents()).toEqual(first)
    const again = { uuid: UUID, files: files({ 'a.csv': '2' }), status: 'S2', result: 'R2' }
    expect(await store.publish(again, async () => true)).toBe(false)
    expect(contents()).toEqual(first)
  })

  test('takes many jobs of one shard at the same time', async () => {
    const other = await openLocalStore(base)
    const uuids = Array.from({ length: 40 }, (_, i) => `ab${i.toString(16).padStart(30, '0')}`)
    const published = uuids.map((uuid, i) =>
      (i % 2 ? store : other).publish({ uuid, files: files({ 'a.txt': uuid }), status: 'S', result: uuid }),
    )
    expect(new Set(await Promise.all(published))).toEqual(new Set([true]))
    for (const uuid of uuids) {
      expect(contents(jobDir(uuid))).toEqual({ 'a.txt': uuid, 'result.json': uuid, 'status.json': 'S' })
    }
  })

  test('leaves one whole result when two workers publish one job at the same time', async () => {
    const versions = Array.from({ length: 8 }, (_, i) => `${i}`.repeat(100_000))
    await Promise.all(
      versions.map((text) => store.publish({ uuid: UUID, files: files({}), status: text, result: text })),
    )
    expect(versions).toContain(readFileSync(join(jobDir(), 'result.json'), 'utf8'))
    expect(readdirSync(jobDir()).sort()).toEqual(['result.json', 'status.json'])
  })

  test.each([
    '../../etc/passwd',
    'a/b',
    '.hidden',
    '..',
    '',
    'a\0b',
    'result.json',
    'status.json',
    'input.json',
    'x'.repeat(256),
  ])('refuses a file named %j and touches nothing', async (name) => {
    const [source = ''] = files({ any: 'x' }).values()
    const work = store.publish({ uuid: UUID, files: new Map([[name, source]]), status: 'S', result: 'R' })
    expect((await failureOf(work)).code).toBe('failed')
    expect(readdirSync(base)).toEqual([])
  })

  test.each(['', '../x', UUID.toUpperCase(), `${UUID}0`])('refuses the malformed uuid %j', async (uuid) => {
    const work = store.publish({ uuid, files: new Map(), status: 'S', result: 'R' })
    expect((await failureOf(work)).message).toContain('32 lower-case hexadecimal digits')
    expect((await failureOf(store.writeStatus(uuid, 'S'))).code).toBe('failed')
    expect(await store.read(uuid, 'status.json')).toBeUndefined()
    expect(readdirSync(base)).toEqual([])
  })

  test('never publishes what a link of an algorithm points to', async () => {
    writeFileSync(join(top, 'secret'), 'secret')
    symlinkSync(join(top, 'secret'), join(scratch, 'link'))
    const work = store.publish({
      uuid: UUID,
      files: new Map([['out.txt', join(scratch, 'link')]]),
      status: 'S',
      result: 'R',
    })
    expect((await failureOf(work)).message).toContain('out.txt cannot be published')
    expect(contents()).toEqual({})
  })

  test('names a file that is gone, and commits nothing', async () => {
    const work = store.publish({
      uuid: UUID,
      files: new Map([['out.txt', join(scratch, 'gone')]]),
      status: 'S',
      result: 'R',
    })
    expect((await failureOf(work)).message).toMatch(/out\.txt .*gone.*ENOENT/)
    expect(existsSync(join(jobDir(), 'result.json'))).toBe(false)
  })
})

describe.each(['nothing aside', 'a folder aside'])('a place in trouble, with %s', (place) => {
  beforeEach(async () => {
    if (place === 'a folder aside') store = await openAside()
  })

  test('is unavailable when the base directory is gone, and is not made anew', async () => {
    renameSync(base, `${base}-moved`)
    const error = await failureOf(store.publish({ uuid: UUID, files: new Map(), status: 'S', result: 'R' }))
    expect(error.code).toBe('unavailable')
    expect(error.message).toContain(base)
    expect(existsSync(base)).toBe(false)
    expect((await failureOf(store.read(UUID, 'result.json'))).code).toBe('unavailable')
    expect((await failureOf(store.find(UUID, 'result.json'))).code).toBe('unavailable')
    expect((await failureOf(store.writeStatus(UUID, 'S'))).code).toBe('unavailable')
  })

  test('takes files from another disk by a copy', ({ skip }) => {
    const point = join(top, 'other-disk')
    if (!mountTmpfs(point, 'size=4m')) return skip()
    const body = randomBytes(3_000_000)
    writeFileSync(join(point, 'out.bin'), body)
    const sources = new Map([['out.bin', join(point, 'out.bin')]])
    return store.publish({ uuid: UUID, files: sources, status: 'S', result: 'R' }).then((published) => {
      expect(published).toBe(true)
      expect(readFileSync(join(jobDir(), 'out.bin')).equals(body)).toBe(true)
      expect(readdirSync(jobDir()).sort()).toEqual(['out.bin', 'result.json', 'status.json'])
    })
  })

  test('takes files from another mount of the same disk by a copy, since a rename is refused', async ({ skip }) => {
    const point = join(top, 'same-disk')
    mkdirSync(point)
    const sources = files({ 'a.txt': 'a', 'b.txt': 'b', 'stdout.log': 'out' })
    if (!mountAt(point, ['--bind', scratch, point])) return skip()
    const there = new Map([...sources].map(([name, path]) => [name, path.replace(scratch, point)]))
    expect(await store.publish({ uuid: UUID, files: there, status: 'S', result: 'R' })).toBe(true)
    const published = { 'a.txt': 'a', 'b.txt': 'b', 'result.json': 'R', 'status.json': 'S', 'stdout.log': 'out' }
    expect(contents()).toEqual(published)
  })

  test('is full: nothing is committed, nothing half is left, and it works again when there is space', async ({
    skip,
  }) => {
    const point = join(top, 'small-disk')
    if (!mountTmpfs(point, 'size=1m')) return skip()
    const small = await openLocalStore(point)
    const sources = files({ 'small.txt': 'x', 'big.bin': randomBytes(3_000_000) })
    const error = await failureOf(small.publish({ uuid: UUID, files: sources, status: 'S', result: 'R' }))
    expect(error.code).toBe('full')
    expect(error.message).toContain(point)
    expect(readdirSync(join(point, 'bc', UUID))).toEqual([])
    expect(await small.read(UUID, 'result.json')).toBeUndefined()

    writeFileSync(join(point, 'filler'), randomBytes(1_000_000))
    expect((await failureOf(small.writeStatus(UUID, 'x'.repeat(200_000)))).code).toBe('full')
    rmSync(join(point, 'filler'))
    expect(await small.publish({ uuid: UUID, files: files({ 'a.txt': 'x' }), status: 'S', result: 'R' })).toBe(true)
  })

  test('that is full is told by the check', async ({ skip }) => {
    const point = join(top, 'full-disk')
    if (!mountTmpfs(point, 'size=64k')) return skip()
    const small = await openLocalStore(point)
    expect(() => writeFileSync(join(point, 'filler'), randomBytes(100_000))).toThrow('ENOSPC')
    expect(await small.check()).toEqual([expect.stringMatching(/disk .* is full \(ENOSPC\); free space/)])
    expect(readdirSync(point)).toEqual(['filler'])
  })
})

describe('the check', () => {
  test('passes a good directory and leaves nothing in it, for it may be another user than the worker who checks', async () => {
    expect(await store.check()).toEqual([])
    expect(readdirSync(base)).toEqual([])
    mkdirSync(join(base, '.work'), { mode: 0o700 })
    expect(await store.check()).toEqual([])
    expect(readdirSync(base)).toEqual(['.work'])
  })

  test('tells how to make a directory that is missing', async () => {
    const missing = await openLocalStore(join(top, "no such 'dir'"))
    const [problem, ...more] = await missing.check()
    expect(more).toEqual([])
    const command = problem?.replace(/.*create it with: /, '') ?? ''
    execFileSync('sh', ['-c', command])
    expect(await missing.check()).toEqual([])
  })

  test('tells that a file is no directory', async () => {
    writeFileSync(join(top, 'file'), '')
    const wrong = await openLocalStore(join(top, 'file'))
    expect(await wrong.check()).toEqual([expect.stringContaining('is not a directory')])
    const below = await openLocalStore(join(top, 'file', 'below'))
    expect(await below.check()).toHaveLength(1)
    writeFileSync(join(base, '.work'), '')
    expect(await store.check()).toEqual([expect.stringMatching(/\.work is not a directory/)])
  })

  test('tells that the work directory was locked by a run', async (context) => {
    for (const path of [top, base]) chmodSync(path, 0o777)
    mkdirSync(join(base, '.work'), { mode: 0 })
    const program = `import { openLocalStore } from '${PROJECT}/dist/store/store.js'
      console.log(JSON.stringify(await (await openLocalStore('${base}')).check()))`
    const rights = process.geteuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}
    const args = ['--input-type=module', '-e', program]
    const { stdout } = spawnSync(process.execPath, args, { ...rights, cwd: '/', encoding: 'utf8' })
    if (stdout === '') return leaveOut(context, 'another user cannot read this project')
    const problem = /^no permission for \S+\.work \(EACCES\); let the worker's user read and write all below/
    expect(JSON.parse(stdout)).toEqual([expect.stringMatching(problem)])
  })

  test('tells that a directory cannot be written, to the superuser too', async ({ skip }) => {
    if (process.getuid?.() === 0) {
      const point = join(top, 'read-only')
      if (!mountTmpfs(point, 'ro')) return skip()
      expect(await (await openLocalStore(point)).check()).toEqual([expect.stringContaining('read-only disk (EROFS)')])
    } else {
      chmodSync(base, 0o555)
      expect(await store.check()).toEqual([expect.stringContaining('no permission')])
      chmodSync(base, 0o755)
    }
  })
})

describe('finding', () => {
  beforeEach(async () => {
    const sources = files({ 'plot.svg': '<svg/>', 'stdout.log': 'out', 'stderr.log': 'err' })
    await store.publish({ uuid: UUID, files: sources, status: 'S', result: 'R' })
  })

  test('gives path, size and time of what is published', async () => {
    for (const name of ['plot.svg', 'stdout.log', 'stderr.log', 'result.json', 'status.json']) {
      const found = await store.find(UUID, name)
      const info = lstatSync(join(jobDir(), name))
      expect(found).toEqual({ path: join(jobDir(), name), bytes: info.size, modified: info.mtime })
    }
  })

  test('gives what is known again when it is unchanged, and only when it is old enough to tell', async () => {
    const path = join(jobDir(), 'result.json')
    const young = await store.find(UUID, 'result.json')
    expect(young?.version).toBeUndefined()
    expect(await store.find(UUID, 'result.json', young)).not.toBe(young)
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 60_000 })
    onTestFinished(() => void vi.useRealTimers())
    const known = await store.find(UUID, 'result.json')
    expect(await store.find(UUID, 'result.json', known)).toBe(known)
    const { atime, mtime } = lstatSync(path)
    writeFileSync(path, 'Q')
    utimesSync(path, atime, mtime)
    const changed = await store.find(UUID, 'result.json', known)
    expect(changed).toMatchObject({ path, bytes: known?.bytes })
    expect(changed?.version).not.toBe(known?.version)
    rmSync(path)
    expect(await store.find(UUID, 'result.json', changed)).toBeUndefined()
  })

  test('gives outputs only when the result is there; logs and status always', async () => {
    rmSync(join(jobDir(), 'result.json'))
    expect(await store.find(UUID, 'plot.svg')).toBeUndefined()
    expect(await store.find(UUID, 'result.json')).toBeUndefined()
    for (const name of ['stdout.log', 'stderr.log', 'status.json']) expect(await store.find(UUID, name)).toBeDefined()
  })

  test('gives no hidden file, no folder, no link and nothing outside', async () => {
    writeFileSync(join(jobDir(), '.hidden'), '')
    writeFileSync(join(jobDir(), 'input.json'), '')
    mkdirSync(join(jobDir(), 'folder'))
    symlinkSync('/etc/hostname', join(jobDir(), 'link'))
    symlinkSync('plot.svg', join(jobDir(), 'inner-link'))
    execFileSync('mkfifo', [join(jobDir(), 'pipe')])
    const names = ['.hidden', 'input.json', 'folder', 'link', 'inner-link', 'pipe', 'no', '', '.', '..', 'folder/x']
    for (const name of [...names, `../${UUID}/plot.svg`, 'plot.svg\0', '/etc/hostname', 'x'.repeat(300)]) {
      expect(await store.find(UUID, name), name).toBeUndefined()
    }
    for (const uuid of ['', '..', `../bc/${UUID}`, UUID.toUpperCase(), '0'.repeat(32)]) {
      expect(await store.find(uuid, 'plot.svg'), uuid).toBeUndefined()
    }
  })

  test('reads no document behind a link on any level, and waits for no pipe', async () => {
    const other = `cd${'0'.repeat(30)}`
    const elsewhere = join(top, 'elsewhere')
    mkdirSync(join(elsewhere, other), { recursive: true })
    for (const name of ['status.json', 'result.json']) writeFileSync(join(elsewhere, other, name), '{}')
    const look = () => Promise.all([store.read(other, 'status.json'), store.read(other, 'result.json')])
    symlinkSync(elsewhere, join(base, other.slice(0, 2)))
    expect(await look()).toEqual([undefined, undefined])
    rmSync(join(base, other.slice(0, 2)))
    mkdirSync(join(base, other.slice(0, 2)))
    symlinkSync(join(elsewhere, other), jobDir(other))
    expect(await look()).toEqual([undefined, undefined])
    rmSync(jobDir(other))
    mkdirSync(jobDir(other))
    symlinkSync(join(elsewhere, other, 'status.json'), join(jobDir(other), 'status.json'))
    execFileSync('mkfifo', [join(jobDir(other), 'result.json')])
    expect(await look()).toEqual([undefined, undefined])
  })

  test('follows no link in place of a job', async () => {
    const other = `bc${'0'.repeat(30)}`
    symlinkSync(jobDir(), jobDir(other))
    expect(await store.find(other, 'plot.svg')).toBeUndefined()
  })
})

test('a base that is another directory than at the start (its disk was unmounted) is refused until it is back', async () => {
  expect(await store.check()).toEqual([])
  renameSync(base, `${base}.away`)
  mkdirSync(base)
  const publication = { uuid: UUID, files: new Map(), status: 'S', result: 'R' }
  const { code, message } = await failureOf(store.publish(publication))
  expect(code).toBe('unavailable')
  expect(message).toMatch(/not the one that it was at the start: mount its disk again, or restart the worker/)
  await failureOf(store.read(UUID, 'result.json'))
  expect(readdirSync(base)).toEqual([])
  rmSync(base, { recursive: true })
  renameSync(`${base}.away`, base)
  expect(await store.publish(publication)).toBe(true)
})

test('a job directory that is a link, or cannot be made, is told before the job runs', async () => {
  await store.prepare(UUID)
  const other = `cd${UUID.slice(2)}`
  mkdirSync(join(top, 'elsewhere'))
  symlinkSync(join(top, 'elsewhere'), join(base, 'cd'))
  expect((await failureOf(store.prepare(other))).message).toMatch(
    /cd is a link or no directory.*put a directory in its place/,
  )
})

test('a folder that has the name of a document gives way', async () => {
  mkdirSync(join(jobDir(), 'status.json', 'x'), { recursive: true })
  expect(await store.publish({ uuid: UUID, files: new Map(), status: 'S', result: 'R' })).toBe(true)
  expect(contents()).toEqual({ 'result.json': 'R', 'status.json': 'S' })
})

test('a check removes what a check that was killed has left, and nothing else', async () => {
  for (const name of ['.899236d6d011706b.tmp', '.ballast', '899236d6d011706b.tmp']) writeFileSync(join(base, name), '')
  expect(await store.check()).toEqual([])
  expect(readdirSync(base).sort()).toEqual(['.ballast', '899236d6d011706b.tmp'])
})
