import { execFileSync, spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { type LocalStore, openLocalStore, StoreError } from '../../src/store/store.ts'
import { leaveOut, PROJECT } from '../support/installation.ts'

const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'

/** Two publishers with folders of their own, and a place for sources, on one disk. */
async function openGround() {
  const top = mkdtempSync(join(tmpdir(), 'qworker-whole-'))
  onTestFinished(() => rmSync(top, { recursive: true, force: true }))
  const base = join(top, 'results')
  mkdirSync(base)
  const open = (staging: string) => {
    mkdirSync(staging)
    return openLocalStore(base, { identity: staging, stateOf: () => 'alive', staging })
  }
  const folders = [join(top, 'one'), join(top, 'other')] as const
  const job = join(base, UUID.slice(0, 2), UUID)
  return { top, base, job, folders, store: await open(folders[0]), other: await open(folders[1]) }
}

type Ground = Awaited<ReturnType<typeof openGround>>

let made = 0

function source({ top }: Ground, text: string): string {
  const path = join(top, `source-${++made}`)
  writeFileSync(path, text)
  return path
}

function publish(store: LocalStore, files: Record<string, string>, who: string, ask?: () => Promise<boolean>) {
  return store.publish({ uuid: UUID, files: new Map(Object.entries(files)), status: who, result: who }, ask)
}

function contents(dir: string): Record<string, string> {
  return Object.fromEntries(readdirSync(dir).map((name) => [name, readFileSync(join(dir, name), 'utf8')]))
}

function expectNothingAside({ folders }: Ground): void {
  for (const folder of folders) expect(readdirSync(folder)).toEqual([])
}

test('nothing of a job is there before the commit, and with it everything: the files themselves, moved', async () => {
  const ground = await openGround()
  const output = source(ground, 'a')
  const { ino } = lstatSync(output)
  let questions = 0
  const ask = async () => {
    questions++
    expect(existsSync(ground.job)).toBe(false)
    return true
  }
  expect(await publish(ground.store, { 'a.csv': output, 'stderr.log': source(ground, '') }, 'us', ask)).toBe(true)
  expect(contents(ground.job)).toEqual({ 'a.csv': 'a', 'stderr.log': '', 'status.json': 'us', 'result.json': 'us' })
  expect(lstatSync(join(ground.job, 'a.csv')).ino).toBe(ino)
  expect(lstatSync(ground.job).mode & 0o777).toBe(lstatSync(dirname(ground.job)).mode & 0o777)
  expect(questions).toBe(1)
  expectNothingAside(ground)
})

test('of two that publish a job at once one commits, and the other changes nothing', async () => {
  const ground = await openGround()
  const theirs = { 'theirs.csv': source(ground, 'x') }
  const late = async () => {
    expect(await publish(ground.other, theirs, 'them')).toBe(true)
    return true
  }
  expect(await publish(ground.store, { 'ours.csv': source(ground, 'x') }, 'us', late)).toBe(false)
  expect(contents(ground.job)).toEqual({ 'theirs.csv': 'x', 'status.json': 'them', 'result.json': 'them' })
  expectNothingAside(ground)
})

test('an attempt that failed elsewhere meanwhile is followed by the result, with its files', async () => {
  const ground = await openGround()
  const { store, other, job } = ground
  let questions = 0
  const late = async () => {
    if (++questions > 1) return true
    const files = new Map([['stderr.log', source(ground, 'oops')]])
    return other.publish({ uuid: UUID, files, status: 'failed' })
  }
  const files = { 'a.csv': source(ground, 'a'), 'stdout.log': source(ground, '{}') }
  expect(await publish(store, files, 'us', late)).toBe(true)
  expect(contents(job)).toEqual({ 'a.csv': 'a', 'stdout.log': '{}', 'status.json': 'us', 'result.json': 'us' })
  // Once for the name of the directory, and then for what is added to one.
  expect(questions).toBe(3)
  expectNothingAside(ground)
})

test('an attempt that failed leaves status and logs, and the next one adds to them', async () => {
  const ground = await openGround()
  const files = new Map([['stderr.log', source(ground, 'oops')]])
  expect(await ground.store.publish({ uuid: UUID, files, status: 'failed' })).toBe(true)
  expect(contents(ground.job)).toEqual({ 'stderr.log': 'oops', 'status.json': 'failed' })
  expect(await publish(ground.store, { 'stderr.log': source(ground, '') }, 'us')).toBe(true)
  expect(contents(ground.job)).toEqual({ 'stderr.log': '', 'status.json': 'us', 'result.json': 'us' })
})

test.each([
  ['an empty directory', (job: string) => mkdirSync(job, { recursive: true }), true],
  ['a file', (job: string) => mkdirSync(dirname(job), { recursive: true }) === writeFileSync(job, 'x'), false],
])('%s that came in its place between', async (_what, make, isPublished) => {
  const ground = await openGround()
  const late = async () => {
    make(ground.job)
    return true
  }
  const work = publish(ground.store, { 'a.csv': source(ground, 'a') }, 'us', late)
  if (isPublished) {
    expect(await work).toBe(true)
    expect(contents(ground.job)).toEqual({ 'a.csv': 'a', 'status.json': 'us', 'result.json': 'us' })
  } else {
    await expect(work).rejects.toThrow(StoreError)
    expect(readFileSync(ground.job, 'utf8')).toBe('x')
  }
  expectNothingAside(ground)
})

test.each([
  ['a link', (job: string, top: string) => symlinkSync(top, job)],
  ['a file', (job: string) => writeFileSync(job, 'x', { mode: 0o700 })],
])('where %s has the name of the directory the job is refused before it runs', async (_what, make) => {
  const { store, job, top } = await openGround()
  mkdirSync(dirname(job))
  make(job, top)
  await expect(store.prepare(UUID)).rejects.toThrow(/is a link or no directory/)
})

test('a shard that was removed with its last result between is made again', async () => {
  const ground = await openGround()
  const clean = async () => {
    rmSync(dirname(ground.job), { recursive: true, force: true })
    return true
  }
  const once = async () => (lstatSync(ground.job, { throwIfNoEntry: false }) === undefined ? clean() : true)
  expect(await publish(ground.store, { 'a.csv': source(ground, 'a') }, 'us', once)).toBe(true)
  expect(contents(ground.job)).toEqual({ 'a.csv': 'a', 'status.json': 'us', 'result.json': 'us' })
  expectNothingAside(ground)
})

test('a directory belongs to the group that the results were given after its folder was made', async (context) => {
  const ground = await openGround()
  const group = (process.getgroups?.() ?? []).find((gid) => gid !== process.getgid?.()) ?? 1
  try {
    chownSync(ground.base, -1, group)
  } catch {
    leaveOut(context, 'needs a second group')
  }
  chmodSync(ground.base, 0o2750)
  expect(await publish(ground.store, { 'a.csv': source(ground, 'a') }, 'us')).toBe(true)
  expect(contents(ground.job)).toEqual({ 'a.csv': 'a', 'status.json': 'us', 'result.json': 'us' })
  const { gid, mode } = lstatSync(ground.job)
  expect({ gid, isInherited: (mode & 0o2000) !== 0 }).toEqual({ gid: group, isInherited: true })
  expectNothingAside(ground)
})

test('a directory has the rights that the results give to what is made in them, by a default ACL', async (context) => {
  const ground = await openGround()
  // user and group: all, others: nothing
  const acl = '02000000 01000700ffffffff 04000700ffffffff 20000000ffffffff'.replaceAll(' ', '')
  const program = 'import os, sys; os.setxattr(sys.argv[1], "system.posix_acl_default", bytes.fromhex(sys.argv[2]))'
  const { status } = spawnSync('python3', ['-c', program, ground.base, acl])
  if (status !== 0) leaveOut(context, 'needs python3, and a file system with ACLs')
  expect(await publish(ground.store, { 'a.csv': source(ground, 'a') }, 'us')).toBe(true)
  expect(contents(ground.job)).toEqual({ 'a.csv': 'a', 'status.json': 'us', 'result.json': 'us' })
  expect((lstatSync(ground.job).mode & 0o777).toString(8)).toBe('770')
  expectNothingAside(ground)
})

test('what is given up leaves nothing, however it is given up', async () => {
  const ground = await openGround()
  const { store, job } = ground
  expect(await publish(store, { 'a.csv': source(ground, 'a') }, 'us', async () => false)).toBe(false)
  const broken = async () => {
    throw new Error('the broker is gone')
  }
  await expect(publish(store, { 'a.csv': source(ground, 'a') }, 'us', broken)).rejects.toThrow('the broker is gone')
  await expect(publish(store, { 'a.csv': join(ground.top, 'gone') }, 'us')).rejects.toThrow(/cannot be published/)
  expect(existsSync(job)).toBe(false)
  expectNothingAside(ground)
})

test('a publisher whose folder was removed publishes all the same', async () => {
  const ground = await openGround()
  await ground.store.publish({ uuid: `cd${UUID.slice(2)}`, files: new Map(), status: 'S', result: 'R' })
  rmSync(ground.folders[0], { recursive: true })
  expect(await publish(ground.store, { 'a.csv': source(ground, 'a') }, 'us')).toBe(true)
  expect(contents(ground.job)).toEqual({ 'a.csv': 'a', 'status.json': 'us', 'result.json': 'us' })
})

test('everything is on the disk before it has its name, and the name before anybody is told', async (context) => {
  if (spawnSync('strace', ['-f', '-o', '/dev/null', 'true']).status !== 0) leaveOut(context, 'strace cannot trace here')
  const { top, base, job } = await openGround()
  const program = `const { openLocalStore } = await import('${PROJECT}/dist/store/store.js')
    const { mkdirSync, writeFileSync } = await import('node:fs')
    mkdirSync('${top}/third')
    for (const name of ['a', 'b', 'empty']) writeFileSync('${top}/third/' + name, name === 'empty' ? '' : name)
    const store = await openLocalStore('${base}', { identity: '', stateOf: () => 'dead', staging: '${top}/third' })
    const files = new Map(['a', 'b', 'empty'].map((name) => [name, '${top}/third/' + name]))
    await store.publish({ uuid: '${UUID}', files, status: 'S', result: 'R' })
    process.kill(process.pid, 0)`
  const trace = join(top, 'trace')
  const calls = 'trace=fsync,fdatasync,rename,renameat,renameat2,kill'
  execFileSync('strace', ['-f', '-y', '-e', calls, '-o', trace, process.execPath, '--input-type=module', '-e', program])
  const lines = readFileSync(trace, 'utf8').split('\n')
  const at = (pattern: RegExp) => lines.findLastIndex((line) => pattern.test(line))
  const named = at(new RegExp(`rename.*"${job}"`))
  const synced = (name: string) => at(new RegExp(`sync\\(\\d+<[^>]*/${name}>`))
  for (const name of ['a', 'b', 'status.json', 'result.json', '\\.[0-9a-f]{16}\\.tmp']) {
    expect(synced(name), name).toBeGreaterThan(-1)
    expect(synced(name), name).toBeLessThan(named)
  }
  expect(synced('empty')).toBe(-1)
  for (const name of ['results/bc', 'results']) expect(synced(name), name).toBeGreaterThan(named)
  expect(at(/kill\(/)).toBeGreaterThan(Math.max(synced('results/bc'), synced('results')))
})
