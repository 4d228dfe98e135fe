import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { expect, test } from 'vitest'
import { readProcess } from '../../src/run/look.ts'
import { ownPresence } from '../../src/run/presence.ts'
import { endWorkshop, findDeadWorkshops, readRunEvidence, removeWorkshop } from '../../src/run/workshop.ts'
import { findLeftovers, findSleepers, kill, openGround, readProc, until } from './ground.ts'
import { end, GUARD, isAlive, NASTY_RUNS, NASTY_SLEEPERS, startKeeper, workBaseOf } from './keeper.ts'

test('a worker killed with -9 leaves no process: its guard ends all runs, and the next start accounts for them', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: true })
  const guard = keeper.guard() as number
  await end(keeper.child, 'SIGKILL')
  const died = performance.now()
  await until('the end of all runs', () => findLeftovers(ground).length === 0)
  const tookMs = Math.round(performance.now() - died)
  await until('the end of the guard', () => !isAlive(guard))
  expect(findLeftovers(ground)).toEqual([])
  const { receipt, ended } = JSON.parse(readFileSync(join(keeper.path, 'ended.json'), 'utf8'))
  console.log(
    `all ended ${tookMs} ms after the worker, guard gone after ${Math.round(performance.now() - died)} ms`,
    receipt,
  )
  expect(receipt).toMatchObject({ method: 'proc', survivors: [] })
  expect(receipt.signals.map(({ signal }: { signal: string }) => signal)).toContain('SIGKILL')
  expect(receipt.signals[0].processes).toBeGreaterThanOrEqual(NASTY_SLEEPERS)

  const [dead, ...others] = await findDeadWorkshops(workBaseOf(ground))
  if (dead === undefined) throw new Error('no dead workshop')
  expect(others).toEqual([])
  expect(dead).toMatchObject({ path: keeper.path, owner: { name: 'keeper' } })
  expect(dead.runs.map(({ uuid, attempt }) => `${uuid}.${attempt}`).sort()).toEqual(
    Array.from({ length: NASTY_RUNS }, (_, i) => `${ground.uuid}.${i + 1}`),
  )
  expect(await endWorkshop(dead)).toMatchObject({ receipt: { survivors: [] }, guardEnded: ended })
  const first = dead.runs.find(({ attempt }) => attempt === 1)
  expect(Math.abs(Date.now() - (first?.started.getTime() ?? 0))).toBeLessThan(60_000)
  expect(first && (await readRunEvidence(first))).toEqual({ stderrTail: 'what it said\n' })
  await removeWorkshop(dead)
  expect(readdirSync(workBaseOf(ground))).toEqual([])
})

test('without a guard the runs of a killed worker live on, and the next start ends them: the need for both', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: false, nasty: true })
  await end(keeper.child, 'SIGKILL')
  await new Promise((resolve) => setTimeout(resolve, 1000))
  expect(findSleepers(ground)).toHaveLength(NASTY_SLEEPERS)
  const dead = await findDeadWorkshops(workBaseOf(ground))
  expect(dead).toHaveLength(1)
  // Two workers that start at the same time do it both.
  const ends = await Promise.all([...dead, ...dead].map(endWorkshop))
  for (const { receipt } of ends) expect(receipt).toMatchObject({ method: 'proc', survivors: [] })
  expect(findLeftovers(ground)).toEqual([])
  await Promise.all([...dead, ...dead].map(removeWorkshop))
  expect(readdirSync(workBaseOf(ground))).toEqual([])
})

test('a worker that ends leaves neither guard nor folder', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: false })
  const guard = keeper.guard() as number
  expect(isAlive(guard)).toBe(true)
  const exited = once(keeper.child, 'exit')
  keeper.child.stdin?.end()
  expect((await exited)[0]).toBe(0)
  expect(isAlive(guard)).toBe(false)
  expect(readdirSync(workBaseOf(ground))).toEqual([])
  expect(keeper.problems).toEqual([])
})

test('a guard ignores what ends others, is in a session of its own and holds nothing of its worker', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: false })
  const guard = keeper.guard() as number
  await until('the script', () => /^SigIgn:\s*[0-9a-f]*[1-9a-f]/m.test(readProc(guard, 'status')))
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGTSTP', 'SIGUSR1'] as const) kill(guard, signal)
  expect(readProcess(guard)).toMatchObject({ session: guard, group: guard, parent: keeper.child.pid })
  expect(readlinkSync(`/proc/${guard}/cwd`)).toBe('/')
  expect(readProc(guard, 'environ')).not.toContain('QWORKER')
  const links = readdirSync(`/proc/${guard}/fd`).filter((fd) => Number(fd) < 10)
  expect(links.sort()).toEqual(['0', '1', '2'])
  // One that is stopped cannot hear that it is no longer needed.
  kill(guard, 'SIGSTOP')
  const exited = once(keeper.child, 'exit')
  keeper.child.stdin?.end()
  expect((await exited)[0]).toBe(0)
  expect(isAlive(guard)).toBe(false)
})

test('a guard that is killed is replaced; when its worker dies without runs, nothing is left', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: false })
  const first = keeper.guard() as number
  kill(first)
  await until('another guard', () => ![first, undefined].includes(keeper.guard()))
  expect(keeper.problems).toEqual([expect.stringMatching(/^the guard, .* was killed \(SIGKILL\); another is started$/)])
  const second = keeper.guard() as number
  await end(keeper.child, 'SIGKILL')
  await until('the end of the guard', () => !isAlive(second))
  expect(readdirSync(workBaseOf(ground))).toEqual([])
})

test('the program of a guard, called while its worker lives or for a stranger, ends nothing', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: true })
  const { presence } = JSON.parse(readFileSync(join(keeper.path, 'worker.json'), 'utf8'))
  const id = basename(keeper.path)
  const calls = [
    [keeper.path, id, presence],
    [keeper.path, id, ownPresence()],
    [keeper.path, id, presence.replace(/\d+$/, '1')],
    [ground.dir, id, presence],
    [ground.dir, basename(ground.dir), presence.replace(/\d+$/, '1')],
    [],
  ]
  const codes = calls.map(async (args) => (await once(spawn(process.execPath, [GUARD, ...args]), 'exit'))[0])
  expect(await Promise.all(codes)).toEqual([64, 64, 64, 64, 64, 64])
  expect(findSleepers(ground)).toHaveLength(NASTY_SLEEPERS)
  await end(keeper.child, 'SIGKILL')
  await until('the receipt', () => existsSync(join(keeper.path, 'ended.json')))
  expect(findLeftovers(ground)).toEqual([])
})

test('a guard that is stopped is woken; one that is stopped again and again is replaced', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: false })
  const first = keeper.guard() as number
  const isStopped = () => readProcess(first)?.state === 'T'
  kill(first, 'SIGSTOP')
  await until('a stopped guard', isStopped)
  await until('its wakening', () => !isStopped())
  expect(keeper.guard()).toBe(first)
  const stopping = setInterval(() => kill(first, 'SIGSTOP'), 1)
  await until('another guard', () => ![first, undefined].includes(keeper.guard())).finally(() =>
    clearInterval(stopping),
  )
  const second = keeper.guard() as number
  await end(keeper.child, 'SIGKILL')
  await until('the end of the guard', () => !isAlive(second))
})

test('a guard that is killed again and again is back soon', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: false })
  let tookMs = 0
  for (let i = 0; i < 8; i++) {
    const pid = keeper.guard() as number
    kill(pid)
    const killed = performance.now()
    await until('another guard', () => ![pid, undefined].includes(keeper.guard()))
    tookMs = performance.now() - killed
  }
  // With a pause that doubles without end it would be 6 s by now.
  expect(tookMs).toBeLessThan(3000)
  const last = keeper.guard() as number
  await end(keeper.child, 'SIGKILL')
  await until('the end of the guard', () => !isAlive(last))
})

test('a guard is not deceived by what a run writes into worker.json', async () => {
  const ground = openGround()
  const keeper = await startKeeper(ground, { guarded: true, nasty: true })
  writeFileSync(join(keeper.path, 'worker.json'), JSON.stringify({ presence: ownPresence(), name: '', started: '' }))
  await end(keeper.child, 'SIGKILL')
  await until('the end of all runs', () => findLeftovers(ground).length === 0)
  await until('the receipt', () => existsSync(join(keeper.path, 'ended.json')))
})
