// A second process. begin: begins an attempt and waits for its end. race: begins and ends 500 attempts of shared jobs.
import { openTracker } from '../../dist/tracker/tracker.js'

const [task, url, worker, started, ...uuids] = process.argv.slice(2)
const tracker = await openTracker(url)
const start = {
  type: 't',
  ticket: '1',
  tube: 'x',
  attempt: 1,
  maxAttempts: 5,
  worker,
  run: 'r',
  started,
  deadline: started,
}
const told = { begun: [], refused: 0, double: 0, lost: 0 }
for (let i = 0; task === 'race' && told.begun.length < 500; i++) {
  const uuid = uuids[i % uuids.length]
  const fence = await tracker.begin({ ...start, uuid }, (await tracker.read(uuid))?.fence ?? 0)
  if (fence === undefined && ++told.refused) continue
  told.begun.push(`${uuid} ${fence}`)
  if ((await tracker.openAttempts()).filter((open) => open.uuid === uuid).length !== 1) told.double++
  const ended = { ended: started, counts: true, record: '{}', state: i % 7 ? 'open' : 'failed', outbox: false }
  if (!(await tracker.holds(uuid, fence)) || !(await tracker.end(uuid, fence, ended))) told.lost++
}
if (task === 'begin')
  told.begun.push(await tracker.begin({ ...start, uuid: uuids[0] }, 0), setInterval(() => {}, 1000) && 0)
console.log(JSON.stringify(told))
