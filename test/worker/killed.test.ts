import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { findRuns, install, leaveOut, until } from '../support/installation.ts'

test('a worker killed with -9 leaves no run; its job runs again, and the next start removes its folder', async () => {
  const home = await install({ CONCURRENCY: '2', GRACE_TIME: '600' })
  home.addAlgorithm(
    'once',
    'test -e "$(dirname "$0")/second" && { echo 2; exit; }; trap "" TERM; setsid sh -c "sleep 300 &"; : > "$(dirname "$0")/second"; while :; do sleep 300; done',
  )
  const worker = await home.startWorker()
  const uuid = await home.putJob('once')
  await until('three processes', () => findRuns(home.results).length === 3)
  worker.child.kill('SIGKILL')
  await worker.exited
  const died = performance.now()
  await until('the end of the run', () => findRuns(home.results).length === 0)
  console.log(`the run ended ${Math.round(performance.now() - died)} ms after its worker`)
  const next = await home.startWorker()
  const cleared = next.events.find(({ event }) => event === 'worker_recovered')
  expect(cleared).toMatchObject({ attempts: 1, survivors: [] })
  await until('its completion', () => home.result(uuid) !== undefined)
  expect(home.result(uuid)?.result).toBe(2)
  expect(await next.stop()).toBe(0)
  expect(readdirSync(join(home.results, '.work'))).toEqual([])
})

test('what a run wrote into its worker’s folder does not keep the next worker from its start', async () => {
  const home = await install({ GRACE_TIME: '600' })
  home.addAlgorithm('waits', 'test "$QWORKER_ATTEMPT" = 1 || { echo 2; exit; }; exec sleep 300')
  const worker = await home.startWorker()
  const uuid = await home.putJob('waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  const [folder = ''] = readdirSync(join(home.results, '.work')).map((name) => join(home.results, '.work', name))
  worker.child.kill('SIGKILL')
  await worker.exited
  await until('the word of its guard', () => existsSync(join(folder, 'ended.json')))
  writeFileSync(join(folder, 'ended.json'), '{"ended":"x","receipt":{"survivors":[]}}')
  const next = await home.startWorker()
  await until('its completion', () => home.result(uuid) !== undefined)
  expect(home.result(uuid)?.result).toBe(2)
  expect(await next.stop()).toBe(0)
  expect(readdirSync(join(home.results, '.work'))).toEqual([])
})

test.for(['the next worker', 'another that lives'])(
  'a run that has filled the disk when its worker is killed does not keep it full: %s makes room and goes on',
  { timeout: 120_000 },
  async (who, context) => {
    const home = await install({ CONCURRENCY: '1', GRACE_TIME: '600', MAX_OUTPUT: '64MiB' })
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', home.results], { stdio: 'pipe' })
    } catch {
      leaveOut(context, 'nothing can be mounted here, root with CAP_SYS_ADMIN is needed')
    }
    const fill = 'cat /dev/zero > big; cat /dev/zero; echo dying >&2; exec sleep 300'
    home.addAlgorithm('fills', `test "$QWORKER_ATTEMPT" = 1 || { echo 2; exit; }; ${fill}`)
    onTestFinished(() => {
      // Whoever still has a file open there does not keep it in the tree.
      execFileSync('umount', ['-l', home.results])
    })
    const worker = await home.startWorker()
    const living = who === 'the next worker' ? undefined : await home.startWorker()
    living?.child.kill('SIGTSTP')
    await living?.waitFor('its rest', ({ event }) => event === 'worker_quiet')
    const uuid = await home.putJob('fills')
    await until('the disk is full', () => statfsSync(home.results).bfree === 0)
    worker.child.kill('SIGKILL')
    await worker.exited
    await until('the end of the run', () => findRuns(home.results).length === 0)
    expect(statfsSync(home.results).bfree).toBe(0)
    living?.child.kill('SIGCONT')
    if (living === undefined) await home.startWorker()
    await until('its completion', () => home.result(uuid) !== undefined)
    expect(home.status(uuid)?.attempts.map(({ outcome }) => outcome)).toEqual(['abandoned', 'success'])
  },
)
