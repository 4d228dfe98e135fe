// A worker without a queue: runs what the file of orders says; ends when its stdin does.
import { readFileSync } from 'node:fs'
import { startGuard } from '../../dist/run/guard.js'
import { runAlgorithm } from '../../dist/run/run.js'
import { createWorkdir } from '../../dist/run/workdir.js'
import { openWorkshop } from '../../dist/run/workshop.js'

const { workBase, program, requests } = JSON.parse(readFileSync(process.argv[2]))
const workshop = await openWorkshop(workBase, 'keeper')
const say = (line) => console.log(JSON.stringify(line))
const guard = program && startGuard({ workshop, program, onProblem: (problem) => say({ problem }) })
for (const [i, request] of requests.entries()) {
  const workdir = await createWorkdir(workshop.path, `${request.uuid}.${i + 1}.${Date.now().toString(36)}`, '{}')
  void runAlgorithm({ ...request, workdir, workerId: workshop.id, signal: new AbortController().signal })
}
setInterval(() => say({ path: workshop.path, guard: guard?.pid() }), 50).unref()
process.stdin.resume().on('end', () => Promise.all([workshop.close(), guard?.stop()]))
