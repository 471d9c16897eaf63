// SPDX-License-Identifier: Apache-2.0
// Searches the built documentation as a page that was opened as a file does: node search_from_files.js SITE WORDS
// The page, its frame and its scripts are stood in for; the shim, the worker of the theme and the index are the real ones.
'use strict'
const fs = require('fs')
const path = require('path')
const vm = require('vm')
const {fileURLToPath, pathToFileURL} = require('url')

const [site, words] = process.argv.slice(2)
const shared = {EventTarget, Event, MessageEvent, URL, Promise, console}

function contentWindow() {
  const target = new EventTarget()
  const inside = vm.createContext({
    ...shared,
    addEventListener: target.addEventListener.bind(target),
    dispatchEvent: target.dispatchEvent.bind(target),
    postMessage() { throw new Error('a frame that posts to itself') },
  })
  inside.self = inside.window = inside
  inside.document = {
    open() {}, write() {}, close() {},
    createElement: () => ({}),
    body: {
      appendChild(script) {
        vm.runInContext(fs.readFileSync(fileURLToPath(script.src), 'utf8'), inside)
        setTimeout(script.onload, 0)
      },
    },
  }
  return inside
}

const page = vm.createContext({
  ...shared,
  window: {location: {protocol: 'file:'}, Worker: null},
  document: {
    baseURI: pathToFileURL(path.join(site, 'index.html')).href,
    createElement: () => ({contentWindow: contentWindow(), remove() {}}),
    documentElement: {appendChild() {}},
  },
})
const read = name => fs.readFileSync(path.join(site, name), 'utf8')
vm.runInContext(read('javascripts/iframe-worker.js'), page)
vm.runInContext(read('search/search_index.js'), page)

const workers = 'assets/javascripts/workers'
const name = fs.readdirSync(path.join(site, workers)).find(each => /^search\..*\.js$/.test(each))
const worker = new page.window.Worker(`${workers}/${name}`)
const SETUP = 0, READY = 1, QUERY = 2, RESULT = 3
worker.addEventListener('message', ({data}) => {
  if (data.type === READY) worker.postMessage({type: QUERY, data: words})
  if (data.type === RESULT) console.log(JSON.stringify(data.data.items.flat().map(each => each.location)))
})
worker.postMessage({type: SETUP, data: {...page.__index, options: {suggest: false}}})
