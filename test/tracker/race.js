// Begins and ends 500 attempts of jobs that another process has too, and says how it went.
import { openTracker } from '../../dist/tracker/tracker.js'

const [url, worker, now, ...uuids] = process.argv.slice(2)
const tracker = await openTracker(url)
const told = { begun: [], refused: 0, double: 0, lost: 0 }
for (let i = 0; told.begun.length < 500; i++) {
  const job = { uuid: uuids[i % uuids.length], type: 't', ticket: '1', tube: 'x', attempt: 1, maxAttempts: 5 }
  const { uuid } = job
  const start = { ...job, worker, run: 'r', started: now, deadline: now }
  const fence = await tracker.begin(start, (await tracker.read(uuid))?.fence ?? 0)
  if (fence === undefined && ++told.refused) continue
  told.begun.push(`${uuid} ${fence}`)
  if ((await tracker.openAttempts()).filter((open) => open.uuid === uuid).length !== 1) told.double++
  const ended = { ended: now, counts: true, record: '{}', state: i % 7 ? 'open' : 'failed', outbox: false }
  if (!(await tracker.holds(uuid, fence)) || !(await tracker.end(uuid, fence, ended))) told.lost++
}
console.log(JSON.stringify(told))
