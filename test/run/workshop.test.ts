import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { expect, test } from 'vitest'
import { MARK_VARIABLE } from '../../src/run/look.ts'
import { isPresent, makeBrief, ownPresence } from '../../src/run/presence.ts'
import { createWorkdir } from '../../src/run/workdir.ts'
import {
  endOrphans,
  endWorkshop,
  findDeadWorkshops,
  openWorkshop,
  readRunEvidence,
  removeWorkshop,
  stateOfWorker,
} from '../../src/run/workshop.ts'
import { findSleepers, openGround, PATH, PROJECT, readProc, until } from './ground.ts'
import { end, NASTY_SLEEPERS, startKeeper, workBaseOf } from './keeper.ts'

const RUN = `${'a'.repeat(32)}.3.lx2k9`

test('a workshop tells whose it is, is for its user alone, and goes when it is closed, unless a run is left', async () => {
  const workBase = workBaseOf(openGround())
  const workshop = await openWorkshop(workBase, 'host.7')
  const other = await openWorkshop(workBase, 'host.7')
  expect(workshop.path).toBe(join(workBase, workshop.id))
  expect(workshop.id).toMatch(new RegExp(`^w${makeBrief(ownPresence())}-[0-9a-f]{8}$`))
  expect(statSync(workshop.path).mode & 0o777).toBe(0o700)
  const owner = JSON.parse(readFileSync(join(workshop.path, 'worker.json'), 'utf8'))
  expect(owner).toEqual({ presence: ownPresence(), name: 'host.7', started: expect.any(String) })
  expect(isPresent(owner.presence)).toBe('alive')
  expect(readdirSync(workBase).sort()).toEqual([workshop.id, other.id].sort())
  expect(await findDeadWorkshops(workBase)).toEqual([])
  await workshop.close()
  await createWorkdir(other.path, RUN, '{}')
  await other.close()
  expect(readdirSync(workBase)).toEqual([other.id])
})

test('the result directory is never made, by a workshop nor by a run; .work and the workshop are, when removed', async () => {
  const ground = openGround()
  const gone = join(ground.dir, 'not-mounted')
  await expect(openWorkshop(join(gone, '.work'), 'x')).rejects.toMatchObject({ code: 'ENOENT' })
  await expect(createWorkdir(join(gone, '.work', 'w1'), RUN, '{}')).rejects.toMatchObject({ code: 'ENOENT' })
  expect(existsSync(gone)).toBe(false)
  const workshop = await openWorkshop(workBaseOf(ground), 'x')
  rmSync(workBaseOf(ground), { recursive: true })
  const { input } = await createWorkdir(workshop.path, RUN, '{}')
  expect(existsSync(input)).toBe(true)
  // Ownerless for up to half a minute: nobody takes it for a dead one's.
  expect(await findDeadWorkshops(workBaseOf(ground))).toEqual([])
  await workshop.close()
})

test('folders of living and of stopped workers stay, and so do their runs', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: true })
  expect(await findDeadWorkshops(workBaseOf(ground))).toEqual([])
  keeper.child.kill('SIGSTOP')
  await until('a stopped worker', () => /^State:\tT/m.test(readProc(keeper.child.pid as number, 'status')))
  expect(await findDeadWorkshops(workBaseOf(ground))).toEqual([])
  // Not even when asked for it.
  const { presence } = JSON.parse(readFileSync(join(keeper.path, 'worker.json'), 'utf8'))
  const owner = { presence, name: '', started: '' }
  const asked = await endWorkshop({ path: keeper.path, id: basename(keeper.path), owner, runs: [] })
  expect(asked.receipt).toMatchObject({ signals: [], survivors: [] })
  expect(findSleepers(ground)).toHaveLength(NASTY_SLEEPERS)
  await end(keeper.child, 'SIGKILL')
  await until('the receipt', () => existsSync(join(keeper.path, 'ended.json')))
})

test('who clears up spares itself, those above it, and what is older than the dead worker', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: false, nasty: false })
  const id = basename(keeper.path)
  await end(keeper.child, 'SIGKILL')
  const markOf = (worker: string) => `${worker}.${'a'.repeat(32)}.1.0123456789abcdef`
  const startSleeper = async (worker: string) => {
    const env = { PATH, NAP: ground.nap, [MARK_VARIABLE]: markOf(worker) }
    const sleeper = spawn('sleep', [ground.nap], { env, stdio: 'ignore', detached: true })
    await once(sleeper, 'spawn')
    return sleeper
  }
  const [dead] = await findDeadWorkshops(workBaseOf(ground))
  if (dead?.owner === undefined) throw new Error('no dead workshop')
  // A worker that would have begun later than its sleeper.
  const laterId = id.replace(/(?<=^w\d+-)[0-9a-z]+/, (ticks) => (Number.parseInt(ticks, 36) + 1e6).toString(36))
  const older = await startSleeper(laterId)
  const later = { ...dead, id: laterId, path: join(workBaseOf(ground), laterId) }
  expect((await endWorkshop(later)).receipt).toMatchObject({ signals: [], survivors: [] })
  expect(findSleepers(ground)).toEqual([older.pid])
  await end(older, 'SIGKILL')
  await startSleeper(id)
  const env = { PATH, NAP: ground.nap, [MARK_VARIABLE]: markOf(id) }

  const program = `import { endWorkshop } from '${PROJECT}/dist/run/workshop.js'
    console.log(JSON.stringify(await endWorkshop(${JSON.stringify(dead)})))`
  const shell = ['-c', '"$@"; echo "shell lives"', 'sh', process.execPath, '--input-type=module', '-e', program]
  const clearing = spawn('/bin/sh', shell, { env, stdio: ['ignore', 'pipe', 'inherit'], detached: true })
  let said = ''
  clearing.stdout.on('data', (chunk) => {
    said += chunk
  })
  expect((await once(clearing, 'close'))[0]).toBe(0)
  const [first = '', second] = said.split('\n')
  expect(JSON.parse(first).receipt).toMatchObject({ signals: [{ signal: 'SIGKILL', processes: 1 }], survivors: [] })
  expect(second).toBe('shell lives')
  expect(findSleepers(ground)).toEqual([])
})

test('folders without an owner are nobody’s only when they are old and nobody works in them', async () => {
  const ground = openGround()
  const workBase = workBaseOf(ground)
  const names = [
    `w${2 ** 22 + 1}-lx2k9-0123abcd`,
    `${'b'.repeat(32)}.2.${2 ** 22 + 1}.lx2k9`,
    '.new-w1-lx2k9-0123abcd',
    '.gone-w1-lx2k9-0123abcd-89abcdef',
  ]
  const age = (name: string, seconds: number) => {
    const then = Date.now() / 1000 - seconds
    utimesSync(join(workBase, name), then, then)
  }
  const unreadable = 'w1-lx2k9-11111111'
  mkdirSync(join(workBase, unreadable, 'worker.json'), { recursive: true })
  const strange = [unreadable, 'somebody’s', '.hidden', `.${'c'.repeat(16)}.tmp`]
  for (const name of [...names, ...strange]) mkdirSync(join(workBase, name), { recursive: true })
  symlinkSync(ground.dir, join(workBase, 'w1-lx2k9-89abcdef'))
  for (const name of names) age(name, 500)
  expect(await findDeadWorkshops(workBase)).toEqual([])
  for (const name of [...names, ...strange]) age(name, 3600)
  const [, old = ''] = names
  mkdirSync(join(workBase, old, 'scratch'))
  writeFileSync(join(workBase, old, 'stderr.log'), 'evidence')
  for (const name of ['scratch', 'stderr.log', '']) age(join(old, name), 3600)
  const inside = spawn('sleep', [ground.nap], { cwd: join(workBase, old, 'scratch'), stdio: 'ignore' })
  await once(inside, 'spawn')
  const found = async () => (await findDeadWorkshops(workBase)).map(({ id }) => id).sort()
  expect(await found()).toEqual(names.filter((name) => name !== old).sort())
  const exited = once(inside, 'exit')
  inside.kill('SIGKILL')
  await exited
  expect(await found()).toEqual([...names].sort())
  for (const dead of await findDeadWorkshops(workBase)) {
    expect((await endWorkshop(dead)).receipt).toMatchObject({ signals: [], survivors: [] })
    for (const run of dead.runs) {
      expect(run).toMatchObject({ uuid: 'b'.repeat(32), attempt: 2 })
      expect(await readRunEvidence(run)).toEqual({ stderrTail: 'evidence' })
    }
    await removeWorkshop(dead)
  }
  expect(readdirSync(workBase).sort()).toEqual(['w1-lx2k9-89abcdef', ...strange].sort())
})

test('what a run put in the place of its log is no evidence', async () => {
  const ground = openGround()
  const path = join(ground.dir, RUN)
  const run = { path, uuid: 'a'.repeat(32), attempt: 3, started: new Date() }
  expect(await readRunEvidence(run)).toEqual({ stderrTail: '' })
  mkdirSync(path)
  symlinkSync('/etc/passwd', join(path, 'stderr.log'))
  expect(await readRunEvidence(run)).toEqual({ stderrTail: '' })
})

test('whether a worker lives is told by its id, whatever a run did to its folder', async () => {
  const ground = openGround()
  const workBase = workBaseOf(ground)
  const keeper = await startKeeper(ground, { guarded: false, nasty: false })
  const id = basename(keeper.path)
  const file = join(keeper.path, 'worker.json')
  const dead = ownPresence().replace(/\d+$/, '1')
  writeFileSync(file, JSON.stringify({ presence: dead, name: 'x', started: 'x' }))
  expect(await findDeadWorkshops(workBase)).toEqual([])
  expect(await stateOfWorker(workBase, id)).toBe('alive')
  rmSync(workBase, { recursive: true })
  expect(await stateOfWorker(workBase, id)).toBe('alive')
  mkdirSync(keeper.path, { recursive: true })
  expect(await findDeadWorkshops(workBase)).toEqual([])
  await end(keeper.child, 'SIGKILL')
  // At once, and by its id: without worker.json, and with one on which a reader would hang.
  const found = { path: keeper.path, id, owner: undefined, runs: [] }
  expect(await findDeadWorkshops(workBase)).toEqual([found])
  spawnSync('mkfifo', [file])
  expect(await findDeadWorkshops(workBase)).toEqual([found])
  rmSync(file)
  writeFileSync(file, JSON.stringify({ presence: ownPresence(), name: 'x', started: 'x' }))
  expect(await findDeadWorkshops(workBase)).toHaveLength(1)
  expect(await stateOfWorker(workBase, id)).toBe('dead')
  rmSync(keeper.path, { recursive: true })
  expect(await stateOfWorker(workBase, id)).toBe('dead')
})

test('of an id that tells too little, without a folder, nothing is known while a worker may have its number', async () => {
  const ground = openGround()
  const asWorker = spawn('/bin/sh', ['-c', 'sleep "$0" & wait # qworker', ground.nap], { stdio: 'ignore' })
  await once(asWorker, 'spawn')
  expect(await stateOfWorker(ground.dir, `w${asWorker.pid}-lx2k9-0123abcd`)).toBe('unknown')
  await until('the sleeper', () => findSleepers(ground).length === 1)
  for (const pid of findSleepers(ground)) process.kill(pid)
  if (asWorker.exitCode === null) await once(asWorker, 'exit')
  expect(await stateOfWorker(ground.dir, `w${asWorker.pid}-lx2k9-0123abcd`)).toBe('dead')
})

test('what a run removed or changed of a living worker’s folder comes back', async () => {
  const ground = openGround()
  const workshop = await openWorkshop(workBaseOf(ground), 'host.7', 10)
  const file = join(workshop.path, 'worker.json')
  const text = readFileSync(file, 'utf8')
  const isBack = () => existsSync(file) && statSync(file).isFile() && readFileSync(file, 'utf8') === text
  for (const harm of [
    () => rmSync(workBaseOf(ground), { recursive: true }),
    () => writeFileSync(file, '{}'),
    () => {
      rmSync(file)
      mkdirSync(join(file, 'x'), { recursive: true })
    },
  ]) {
    harm()
    await until('worker.json', isBack)
  }
  await workshop.close()
  expect(readdirSync(workBaseOf(ground))).toEqual([])
})

const RECEIPT = { signals: [], duration_ms: 0, survivors: [], method: 'proc' }

test.each<[string, unknown]>([
  ['without signals', { survivors: [] }],
  ['with a wrong signal', { ...RECEIPT, signals: [{ signal: 'SIGKILL', at_ms: '0', processes: 1 }] }],
  ['with no signal', { ...RECEIPT, signals: [null] }],
  ['with survivors that are no numbers', { ...RECEIPT, survivors: ['x'] }],
  ['of an unknown method', { ...RECEIPT, method: 'x' }],
  ['without an end', { ...RECEIPT, duration_ms: null }],
  ['that is none', null],
])('a receipt %s is no guard’s, and all runs are ended', async (_, receipt) => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: false, nasty: false })
  await end(keeper.child, 'SIGKILL')
  writeFileSync(join(keeper.path, 'ended.json'), JSON.stringify({ ended: 'x', receipt }))
  const [dead] = await findDeadWorkshops(workBaseOf(ground))
  if (dead === undefined) throw new Error('no dead workshop')
  expect(await endWorkshop(dead)).toEqual({
    receipt: { ...RECEIPT, duration_ms: expect.any(Number) },
    guardEnded: undefined,
  })
})

test('a forged receipt that says all is over, or a worker’s folder that is gone, spares nothing', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: false, nasty: true })
  const id = basename(keeper.path)
  await end(keeper.child, 'SIGKILL')
  writeFileSync(join(keeper.path, 'ended.json'), JSON.stringify({ ended: 'x', receipt: RECEIPT }))
  writeFileSync(join(keeper.path, 'worker.json'), '{}')
  const [dead] = await findDeadWorkshops(workBaseOf(ground))
  if (dead === undefined) throw new Error('no dead workshop')
  const began = performance.now()
  expect((await endWorkshop(dead)).receipt).toMatchObject({ signals: [{ signal: 'SIGKILL' }], survivors: [] })
  // It looked again, and again.
  expect(performance.now() - began).toBeGreaterThan(500)
  expect(findSleepers(ground)).toEqual([])
  rmSync(keeper.path, { recursive: true })
  const env = { PATH, [MARK_VARIABLE]: `${id}.${'a'.repeat(32)}.1.0123456789abcdef` }
  const sleeper = spawn('sleep', [ground.nap], { env, stdio: 'ignore', detached: true })
  await once(sleeper, 'spawn')
  expect(await endOrphans(workBaseOf(ground), id)).toMatchObject({ signals: [{ signal: 'SIGKILL' }], survivors: [] })
  expect(findSleepers(ground)).toEqual([])
})
