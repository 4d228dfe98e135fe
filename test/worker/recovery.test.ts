import { existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { makeBus, type WorkerEvent } from '../../src/report/events.ts'
import { openLocalStore, StoreError } from '../../src/store/store.ts'
import { openTracker, sqliteUrl } from '../../src/tracker/tracker.ts'
import { makeRecovery } from '../../src/worker/recovery.ts'
import { type Ground, openGround } from '../run/ground.ts'
import { end, startKeeper, workBaseOf } from '../run/keeper.ts'

const [ONE, TWO] = ['a'.repeat(32), 'b'.repeat(32)]

/** A recovery over a store that refuses what is in `refused`. */
async function openHouse(ground: Ground) {
  const tracker = await openTracker(sqliteUrl(join(ground.dir, 'tracker.db')))
  onTestFinished(() => tracker.close())
  const local = await openLocalStore(ground.dir)
  const refused = new Set<string>()
  const stores = {
    s3: undefined,
    local: {
      ...local,
      tidy: async (uuid: string) => {
        if (refused.has(uuid)) throw new StoreError('denied', `no permission for ${uuid.slice(0, 2)}`)
      },
    },
  }
  const events: WorkerEvent[] = []
  const bus = makeBus((error) => {
    throw error
  })
  bus.subscribe((event) => void events.push(event))
  const workBase = workBaseOf(ground)
  const recovery = makeRecovery({ tracker, stores, workBase, workerId: 'w1-lx2k9-00000000', bus })
  const begin = (uuid: string, worker: string) =>
    tracker.begin(
      {
        ...{ uuid, type: 't', ticket: '1', tube: 'default', attempt: 1, maxAttempts: 5, worker },
        run: `${uuid}.1.lx2k9`,
        started: new Date().toISOString(),
        deadline: new Date(Date.now() + 3_600_000).toISOString(),
      },
      0,
    )
  const open = async () => (await tracker.openAttempts()).map(({ uuid }) => uuid).sort()
  return { tracker, refused, events, recovery, begin, open }
}

test('an attempt that cannot be closed, and a folder that cannot be read, keep no other from its end; they are closed later', async () => {
  const ground = openGround()
  const house = await openHouse(ground)
  const keeper = await startKeeper(ground, { guarded: false, nasty: false })
  const worker = basename(keeper.path)
  await end(keeper.child, 'SIGKILL')
  await house.begin(ONE, worker)
  await house.begin(TWO, worker)
  house.refused.add(ONE)
  writeFileSync(join(keeper.path, 'ended.json'), '{"ended":"x","receipt":{"survivors":[]}}')
  await house.recovery.recoverAll()
  expect(await house.open()).toEqual([ONE])
  const problem = `what a dead worker left, attempt 1 of ${ONE}, waits: no permission for aa`
  expect(house.events).toContainEqual({ event: 'worker_problem', problem })
  expect(existsSync(keeper.path)).toBe(true)
  // Its folder is gone: by its id it is dead nevertheless.
  rmSync(keeper.path, { recursive: true })
  await house.recovery.recoverAll()
  expect(await house.open()).toEqual([ONE])
  house.refused.clear()
  await house.recovery.recoverWorker(worker)
  expect(await house.open()).toEqual([])
})

test('where .work itself cannot be read the attempts of the dead are closed, and it is told', async () => {
  const ground = openGround()
  const house = await openHouse(ground)
  const keeper = await startKeeper(ground, { guarded: false, nasty: false })
  await end(keeper.child, 'SIGKILL')
  await house.begin(ONE, basename(keeper.path))
  rmSync(workBaseOf(ground), { recursive: true })
  writeFileSync(join(ground.dir, 'file'), '')
  symlinkSync('file', workBaseOf(ground))
  await house.recovery.recoverAll()
  expect(house.events).toContainEqual({ event: 'worker_problem', problem: expect.stringMatching(/\.work.*ENOTDIR/) })
  expect(await house.open()).toEqual([])
})

test('the attempt of a living worker stays open when its folder is gone, or tells of another', async () => {
  const ground = openGround()
  const house = await openHouse(ground)
  const keeper = await startKeeper(ground, { guarded: false, nasty: false })
  const worker = basename(keeper.path)
  await house.begin(ONE, worker)
  rmSync(workBaseOf(ground), { recursive: true })
  await house.recovery.recoverAll()
  expect(await house.open()).toEqual([ONE])
  mkdirSync(keeper.path, { recursive: true })
  writeFileSync(join(keeper.path, 'worker.json'), '{"presence":"linux a b c 1 1","name":"x","started":"x"}')
  await house.recovery.recoverWorker(worker)
  expect(await house.recovery.stateOf(worker)).toBe('alive')
  expect(await house.open()).toEqual([ONE])
  await end(keeper.child, 'SIGKILL')
  await house.recovery.recoverAll()
  expect(await house.open()).toEqual([])
})
