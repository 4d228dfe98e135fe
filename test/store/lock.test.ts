import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { isPresent, ownPresence } from '../../src/run/presence.ts'
import { type LocalStore, openLocalStore } from '../../src/store/store.ts'
import { PROJECT, until } from '../support/installation.ts'

const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'

/** Begins to publish, says so before its commit, and goes on when it is told. */
const PROGRAM = `const [dist, base, uuid] = process.argv.slice(1)
const { openLocalStore } = await import(dist + '/store/store.js')
const { isPresent, ownPresence } = await import(dist + '/run/presence.js')
const store = await openLocalStore(base, { identity: ownPresence(), stateOf: isPresent })
const ask = async () => { console.log('asked'); await new Promise((go) => process.stdin.once('data', go)); return true }
const done = await store.publish({ uuid, files: new Map(), status: '"theirs"', result: '"theirs"' }, ask)
console.log(done)
process.stdin.destroy()`

/** A process that holds the lock of a job, and a store that counts how often it asks who lives. */
async function openGround() {
  const top = mkdtempSync(join(tmpdir(), 'qworker-lock-'))
  const base = join(top, 'results')
  mkdirSync(base)
  const args = ['--input-type=module', '-e', PROGRAM, join(PROJECT, 'dist'), base, UUID]
  const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  onTestFinished(async () => {
    child.kill('SIGKILL')
    await exited
    rmSync(top, { recursive: true, force: true })
  })
  await once(child.stdout, 'data')
  const answers: string[] = []
  const stateOf = (identity: string) => {
    const state = isPresent(identity)
    answers.push(state)
    return state
  }
  const store = await openLocalStore(base, { identity: ownPresence(), stateOf })
  const folder = join(base, UUID.slice(0, 2), UUID)
  return { child, exited, store, answers, folder, lock: join(folder, '.publishing') }
}

const publishOurs = (store: LocalStore) =>
  store.publish({ uuid: UUID, files: new Map(), status: '"ours"', result: '"ours"' })

test('the lock of a process that is stopped is not broken, however old it is; that of a dead one is, however young', async () => {
  const { child, exited, store, answers, folder, lock } = await openGround()
  child.kill('SIGSTOP')
  await until('it is stopped', () => /^State:\tT/m.test(readFileSync(`/proc/${child.pid}/status`, 'latin1')))
  const theirs = readlinkSync(lock)
  lutimesSync(lock, 0, 0)
  const ours = publishOurs(store)
  await until('it has looked several times', () => answers.length >= 4)
  expect(new Set(answers)).toEqual(new Set(['alive']))
  expect(readlinkSync(lock)).toBe(theirs)
  // An hour ahead: its age is none.
  lutimesSync(lock, Date.now() / 1000 + 3600, Date.now() / 1000 + 3600)
  child.kill('SIGKILL')
  await exited
  expect(await ours).toBe(true)
  expect(answers.at(-1)).toBe('dead')
  expect(await store.read(UUID, 'result.json')).toBe('"ours"')
  expect(readdirSync(folder)).not.toContain('.publishing')
})

test('a process that goes on commits what it began, and who waited for its lock gives up', async () => {
  const { child, exited, store, answers } = await openGround()
  child.kill('SIGSTOP')
  const ours = publishOurs(store)
  await until('it has looked', () => answers.length >= 1)
  child.kill('SIGCONT')
  // The first question, and the one before the result.
  child.stdin.write('go')
  await once(child.stdout, 'data')
  child.stdin.write('go')
  const [said] = await once(child.stdout, 'data')
  await exited
  expect(String(said)).toBe('true\n')
  expect(await ours).toBe(false)
  expect(await store.read(UUID, 'result.json')).toBe('"theirs"')
  expect(await store.read(UUID, 'status.json')).toBe('"theirs"')
})

/** A store whose own identity is `us`, and the name of its lock. */
async function openAlone(stateOf: (identity: string) => 'alive' | 'dead' | 'unknown') {
  const base = mkdtempSync(join(tmpdir(), 'qworker-lock-'))
  onTestFinished(() => rmSync(base, { recursive: true, force: true }))
  const store = await openLocalStore(base, { identity: 'us', stateOf })
  const folder = join(base, UUID.slice(0, 2), UUID)
  mkdirSync(folder, { recursive: true })
  return { store, folder, lock: join(folder, '.publishing') }
}

test.each([
  ['a file', (lock: string) => writeFileSync(lock, 'them\n')],
  ['a folder', (lock: string) => mkdirSync(join(lock, 'full', 'of'), { recursive: true })],
  ['a lock in our own name', (lock: string) => symlinkSync('us\nforged', lock)],
  ['an old lock of whom nobody knows', leaveOldLock],
])('%s that an algorithm left in the name of the lock gives way', async (_what, leave) => {
  const { store, folder, lock } = await openAlone((identity) => (identity === 'us' ? 'alive' : 'unknown'))
  leave(lock)
  expect(await publishOurs(store)).toBe(true)
  expect(readdirSync(folder).sort()).toEqual(['result.json', 'status.json'])
})

function leaveOldLock(lock: string): void {
  symlinkSync('them\nthere', lock)
  lutimesSync(lock, Date.now() / 1000 - 61, Date.now() / 1000 - 61)
}

test('what a dead publisher left is tidied, what a living one holds is not', async () => {
  let state: 'alive' | 'dead' = 'alive'
  const { store, folder, lock } = await openAlone(() => state)
  symlinkSync('them\nthere', lock)
  writeFileSync(join(folder, 'result.json'), '{}')
  await store.tidy(UUID)
  expect(readlinkSync(lock)).toBe('them\nthere')
  state = 'dead'
  await store.tidy(UUID)
  expect(readdirSync(folder)).toEqual(['result.json'])
  await store.tidy(`cd${UUID.slice(2)}`)
})
