/** What a copy of each result on S3 costs. */

import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { makeFolder, startServer } from '../children.js'
import { startBroker } from '../queue.js'
import { interleave, makeEntry } from '../rounds.js'
import { chooseCount, kilobyte, startWorker, work, writeAlgorithms } from '../worker.js'

const SLOTS = 4
const BUCKET = 'results'
const PREFIX = 'bench/'

export async function measure(bench) {
  const directory = makeFolder('s3')
  const server = await startServer('s3-server.js', [directory, BUCKET])
  const broker = await startBroker()
  const algorithms = writeAlgorithms({ kilobyte: kilobyte() })
  const env = {
    ...{ AWS_ACCESS_KEY_ID: 'S3RVER', AWS_SECRET_ACCESS_KEY: 'S3RVER', S3_BUCKET: BUCKET, S3_PREFIX: PREFIX },
    ...{ S3_ENDPOINT: `http://127.0.0.1:${server.port}`, S3_FORCE_PATH_STYLE: 'true' },
  }
  const common = { slots: SLOTS, algorithms, type: 'kilobyte' }
  const workers = [
    await startWorker(broker, { ...common, name: 'qworker' }),
    await startWorker(broker, { ...common, name: 'qworker, with S3', env }),
  ]
  const runs = [
    (jobs) => work(bench, broker, workers[0], jobs),
    async (jobs) => {
      const done = await work(bench, broker, workers[1], jobs)
      checkObjects(bench, join(directory, BUCKET, PREFIX), done.uuids, workers[1].published)
      return done
    },
  ]
  const contenders = []
  for (const run of runs) {
    const count = await chooseCount(bench, run)
    contenders.push({ run: () => run(count) })
  }
  const samples = await interleave(bench, contenders)
  const rates = samples.map((each) => each.map(({ rate }) => rate))
  const plain = makeEntry(workers[0].name, 'jobs/s', rates[0], { slots: SLOTS })
  return {
    title: 'jobs with results of 1 KB, published to S3 too (s3rver on this machine)',
    how: ['a job is deleted when its copy is there; s3rver needs its part of the processors'],
    entries: [plain, makeEntry(workers[1].name, 'jobs/s', rates[1], { slots: SLOTS, beside: plain })],
  }
}

/** s3rver keeps an object in a file. */
function checkObjects(bench, dir, uuids, expected) {
  const faults = uuids
    .filter((uuid) => !existsSync(join(dir, uuid, 'result.json._S3rver_object')))
    .map((uuid) => `${uuid} has no result.json on S3`)
  const found = readdirSync(dir).length
  if (found !== expected) faults.push(`${found} jobs on S3 of ${expected}`)
  bench.check('S3', { objects: uuids.length - faults.length }, faults)
}
