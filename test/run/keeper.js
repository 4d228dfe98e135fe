// A worker without a queue: runs what the file of orders says; ends when its stdin does.
import { readFileSync } from 'node:fs'
import { openGroups } from '../../dist/run/cgroup.js'
import { divideOwnGroup } from '../../dist/run/delegation.js'
import { startGuard } from '../../dist/run/guard.js'
import { openLauncher } from '../../dist/run/launcher.js'
import { runAlgorithm } from '../../dist/run/run.js'
import { createWorkdir } from '../../dist/run/workdir.js'
import { openWorkshop } from '../../dist/run/workshop.js'

const { workBase, program, requests, divides } = JSON.parse(readFileSync(process.argv[2]))
const say = (line) => console.log(JSON.stringify(line))
const cgroup = divides && (await divideOwnGroup())
const groups = cgroup?.path && openGroups(cgroup.path, (problem) => say({ problem }))
const workshop = await openWorkshop(workBase, 'keeper', undefined, groups?.base)
const guard = program && startGuard({ workshop, program, onProblem: (problem) => say({ problem }) })
for (const [i, request] of requests.entries()) {
  const { user } = request.algorithm
  const runId = `${request.uuid}.${i + 1}.${Date.now().toString(36)}`
  const workdir = await createWorkdir(workshop.path, runId, '{}', undefined, user)
  const signal = new AbortController().signal
  const launcher = openLauncher(workshop.id)
  const ours = { workdir, workerId: workshop.id, signal, launcher, groups: groups || undefined }
  void runAlgorithm({ ...request, ...ours }).then((report) => {
    launcher.close()
    say({ report: { ...report, number: i } })
  })
}
setInterval(() => say({ path: workshop.path, guard: guard?.pid(), cgroup }), 50).unref()
process.stdin.resume().on('end', async () => {
  await Promise.all([workshop.close(), guard?.stop()])
  cgroup?.giveBack?.()
})
