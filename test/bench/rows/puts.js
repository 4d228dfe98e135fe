/** How fast a batch is put, beside a client that does nothing but write and count. */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ENVIRONMENT, makeFolder, PROJECT, runProcess } from '../children.js'
import { newUuid, putCommand, startBroker } from '../queue.js'
import { interleave, makeEntry, median } from '../rounds.js'
import { program } from '../worker.js'

const WINDOWS = ['256', '4096', 'all']
const TUBE = 'puts'
const TYPE = 'nothing'
const DRAIN = 1_000

export async function measure(bench) {
  const jobs = bench.quick ? 30_000 : 200_000
  const few = jobs / 20
  const dir = makeFolder('puts')
  const payloads = Array.from({ length: jobs }, (_, n) => `{"n":${n},"name":"job"}`)
  for (const count of [few, jobs]) writeFileSync(join(dir, `${count}.txt`), `${payloads.slice(0, count).join('\n')}\n`)
  const commands = payloads.map((payload) => putCommand(`[{"uuid":"${newUuid()}","type":"${TYPE}"},${payload}]`))
  writeFileSync(join(dir, 'commands'), commands.join(''))
  const names = [`qproducer --batch, ${jobs} jobs`, `qproducer --batch, ${few} jobs`]
  const contenders = [
    ...[jobs, few].map((count, i) => ({ name: names[i], run: () => putBatch(bench, dir, count) })),
    ...WINDOWS.map((window) => ({ name: `bare, ${window} in flight`, run: () => putBare(bench, dir, jobs, window) })),
  ]
  const [many, some, ...bare] = await interleave(bench, contenders)
  const bares = bare.map((seconds, i) =>
    makeEntry(
      contenders[i + 2].name,
      'jobs/s',
      seconds.map((s) => jobs / s),
    ),
  )
  const fastest = bares.toSorted((a, b) => b.median - a.median)[0]
  // One round's difference of two noisy times says little: the small batch counts by its median.
  const own = many.map((seconds) => seconds - median(some)).map((rest) => (rest > 0 ? (jobs - few) / rest : Number.NaN))
  return {
    title: `${jobs} jobs put, each time to a new broker`,
    how: [
      `without start: the time of ${few} jobs taken off; bare: bytes made before, from the first write to the last reply`,
    ],
    entries: [
      makeEntry(
        'qproducer --batch',
        'jobs/s',
        many.map((seconds) => jobs / seconds),
        { beside: fastest },
      ),
      makeEntry('qproducer --batch, without start', 'jobs/s', own, { beside: fastest }),
      makeEntry(names[1], 's', some),
      ...bares,
    ].filter((entry) => entry !== undefined),
  }
}

async function withBroker(use) {
  const broker = await startBroker()
  try {
    return await use(broker)
  } finally {
    await broker.stop()
  }
}

function putBatch(bench, dir, count) {
  return withBroker(async (broker) => {
    const env = { ...ENVIRONMENT, BEANSTALK_SERVER: '127.0.0.1', BEANSTALK_PORT: String(broker.port) }
    const args = [join(PROJECT, 'bin', 'qproducer'), '-a', TYPE, '--tube', TUBE, '--batch', join(dir, `${count}.txt`)]
    const { seconds, stdout } = await runProcess(process.execPath, args, { env })
    const said = Number(/accepted (\d+) jobs/.exec(stdout)?.[1])
    await checkWaiting(bench, 'qproducer', broker, count, said)
    return seconds
  })
}

function putBare(bench, dir, count, window) {
  return withBroker(async (broker) => {
    const args = [program('bare-put.js'), String(broker.port), TUBE, join(dir, 'commands'), window]
    const { accepted, seconds } = JSON.parse((await runProcess(process.execPath, args)).stdout)
    await checkWaiting(bench, 'bare', broker, count, accepted)
    return seconds
  })
}

/** What the broker has is what was told, and no uuid is there twice. */
async function checkWaiting(bench, name, { client }, count, told) {
  const faults = []
  const expect = (what, found) => {
    if (found !== count) faults.push(`${name}: ${what}: ${found}, expected ${count}`)
  }
  expect('accepted as it says', told)
  const stats = await client.tubeStats(TUBE)
  expect('accepted as the broker counts', stats['total-jobs'])
  expect('waiting', stats['current-jobs-ready'])
  const uuids = new Set()
  await client.ask(`watch ${TUBE}\r\n`)
  for (let seen = 0; seen < count; seen += DRAIN) {
    const wanted = Math.min(DRAIN, count - seen)
    const areWhole = (reply) => (reply.match(/^(?:RESERVED \d+ \d+\r\n.*|TIMED_OUT)\r\n/gm)?.length ?? 0) === wanted
    const replies = await client.ask('reserve-with-timeout 0\r\n'.repeat(wanted), areWhole)
    for (const [, uuid] of replies.matchAll(/^\[\{"uuid":"([0-9a-f]{32})"/gm)) uuids.add(uuid)
  }
  expect('different uuids', uuids.size)
  bench.check(name, { accepted: count, waiting: uuids.size }, faults)
}
