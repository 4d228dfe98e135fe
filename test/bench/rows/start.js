/** How long a program takes that does next to nothing, beside Node itself. */

import { join } from 'node:path'
import { ENVIRONMENT, PROJECT, runProcess } from '../children.js'
import { startBroker } from '../queue.js'
import { interleave, makeEntry } from '../rounds.js'

const RUNS_A_ROUND = 3

export async function measure(bench) {
  const broker = await startBroker()
  const env = { ...ENVIRONMENT, BEANSTALK_SERVER: '127.0.0.1', BEANSTALK_PORT: String(broker.port) }
  const bin = (name) => join(PROJECT, 'bin', name)
  const commands = [
    ['node -e 0', ['-e', '0']],
    ['qproducer, one job', [bin('qproducer'), '-a', 'nothing', '-p', '{}']],
    ['qproducer --version', [bin('qproducer'), '--version']],
    ['qworker --version', [bin('qworker'), '--version']],
  ]
  const run = async (args) => (await runProcess(process.execPath, args, { env })).seconds * 1000
  const rounds = bench.rounds * RUNS_A_ROUND
  const samples = await interleave(
    bench,
    commands.map(([, args]) => ({ run: () => run(args) })),
    rounds,
  )
  const done = samples[1].length
  const { 'total-jobs': accepted } = await broker.client.tubeStats('default')
  bench.check('qproducer', { accepted }, accepted === done ? [] : [`${accepted} jobs put by ${done} qproducers`])
  const node = makeEntry(commands[0][0], 'ms', samples[0])
  const others = commands.slice(1).map(([name], i) => makeEntry(name, 'ms', samples[i + 1], { beside: node }))
  return {
    title: 'cold start, from the start of the process to its end',
    how: ['NODE_EXTRA_CA_CERTS is not set'],
    entries: [node, ...others],
  }
}
