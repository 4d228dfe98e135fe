/** Result documents over HTTP, beside a file server and the most that node:http does. */

import { statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { makeFolder, runProcess, startServer } from '../children.js'
import { startBroker } from '../queue.js'
import { interleave, makeEntry } from '../rounds.js'
import { kilobyte, program, startWorker, work, writeAlgorithms } from '../worker.js'

const CONNECTIONS = 32

export async function measure(bench) {
  const broker = await startBroker()
  const algorithms = writeAlgorithms({ kilobyte: kilobyte() })
  const worker = await startWorker(broker, { name: 'qworker', slots: 4, algorithms, type: 'kilobyte' })
  const { uuids } = await work(bench, broker, worker, bench.quick ? 200 : 1_000)
  const documents = uuids.map((uuid) => {
    const path = join(uuid.slice(0, 2), uuid, 'result.json')
    return { uuid, path, bytes: statSync(join(worker.results, path)).size }
  })
  const lists = {
    uuid: writeList(documents, ({ uuid }) => `/${uuid}`),
    path: writeList(documents, ({ path }) => `/${path}`),
    one: writeList([documents[0]], () => '/'),
  }
  const servers = [{ name: 'qworker', port: Number(new URL(worker.url).port), list: lists.uuid }]
  const start = async (name, kind, path, list) => {
    const { port } = await startServer('http-server.js', [kind, path])
    servers.push({ name, port, list })
  }
  if (await hasSirv()) {
    await start('sirv', 'sirv', worker.results, lists.path)
    await start('sirv, dev: true', 'sirv-dev', worker.results, lists.path)
  } else bench.leaveOut('sirv: not installed')
  await start('node:http, a fixed body', 'fixed', join(worker.results, documents[0].path), lists.one)
  const contenders = servers.map((server) => ({ run: () => load(bench, server) }))
  const samples = await interleave(bench, contenders)
  return makeRow(servers, samples, documents)
}

function makeRow(servers, samples, documents) {
  const entries = servers.map(({ name }, i) => makeEntry(name, 'requests/s', samples[i]))
  const [ours, ...others] = entries
  const ceiling = others.pop()
  const peer = others.toSorted((a, b) => b.median - a.median)[0]
  const beside = peer ?? ceiling
  const bytes = documents.reduce((sum, document) => sum + document.bytes, 0) / documents.length
  return {
    title: `${documents.length} result documents of ${Math.round(bytes)} bytes over HTTP, ${CONNECTIONS} connections`,
    how: ['keep-alive, one request at a time on each connection; the client is a process of its own'],
    entries: [
      { ...ours, ratio: ours.median / beside.median, ratio_to: beside.name },
      ...others,
      { ...ceiling, ratio: ceiling.median / ours.median, ratio_to: ours.name },
    ],
  }
}

function writeList(documents, pathOf) {
  const file = join(makeFolder('list'), 'documents')
  writeFileSync(file, documents.map((document) => `${pathOf(document)} ${document.bytes}\n`).join(''))
  return file
}

const hasSirv = () =>
  runProcess(process.execPath, [program('http-server.js'), 'probe']).then(
    () => true,
    () => false,
  )

async function load(bench, { name, port, list }) {
  const [warmUp, seconds] = bench.quick ? [0.2, 0.5] : [0.5, 2]
  const args = [program('http-load.js'), port, list, CONNECTIONS, warmUp, seconds].map(String)
  const { requests, seconds: elapsed, wrong } = JSON.parse((await runProcess(process.execPath, args)).stdout)
  const faults =
    wrong > 0 ? [`${name}: ${wrong} connections got something other than the document, or were closed`] : []
  bench.check(name, { requests }, faults)
  return requests / elapsed
}
