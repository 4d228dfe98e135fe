import { spawn } from 'node:child_process'
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
import { MARK_VARIABLE, startTicksOf } from '../../src/run/look.ts'
import { isPresent, ownPresence } from '../../src/run/presence.ts'
import { createWorkdir } from '../../src/run/workdir.ts'
import {
  endWorkshop,
  findDeadWorkshops,
  openWorkshop,
  readRunEvidence,
  removeWorkshop,
} from '../../src/run/workshop.ts'
import { findSleepers, openGround, PATH, PROJECT, readProc, until } from './ground.ts'
import { end, NASTY_SLEEPERS, startKeeper, workBaseOf } from './keeper.ts'

const RUN = `${'a'.repeat(32)}.3.lx2k9`

test('a workshop tells whose it is, is for its user alone, and goes when it is closed, unless a run is left', async () => {
  const workBase = workBaseOf(openGround())
  const workshop = await openWorkshop(workBase, 'host.7')
  const other = await openWorkshop(workBase, 'host.7')
  expect(workshop.path).toBe(join(workBase, workshop.id))
  expect(workshop.id).toMatch(/^w\d+-[0-9a-z]+-[0-9a-f]+$/)
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
  const env = { PATH, NAP: ground.nap, [MARK_VARIABLE]: `${id}.${'a'.repeat(32)}.1.0123456789abcdef` }
  const sleeper = spawn('sleep', [ground.nap], { env, stdio: 'ignore', detached: true })
  await once(sleeper, 'spawn')
  const [dead] = await findDeadWorkshops(workBaseOf(ground))
  if (dead?.owner === undefined) throw new Error('no dead workshop')
  const ticks = (startTicksOf(sleeper.pid as number) as number) + 1
  const later = { ...dead, owner: { ...dead.owner, presence: dead.owner.presence.replace(/\d+$/, String(ticks)) } }
  expect((await endWorkshop(later)).receipt).toMatchObject({ signals: [], survivors: [] })
  expect(findSleepers(ground)).toEqual([sleeper.pid])

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
