"""What stands between memtrain and files: everything a stranger wrote is read here, by one stated contract each.

| file | contract |
|---|---|
| `text` | UTF-8 text, JSON and JSON lines: sizes, depth, NaN, NUL |
| `csv_table` | CSV: no row is swallowed, no value stands under another column |
| `sheet_cells` | text in CSV files of ours, which no spreadsheet evaluates |
| `key_table` | tables of keys, such as flagged.csv, also from a spreadsheet |
| `parquet_table` | Parquet: whole files, with the columns that are needed |
| `prompt_file` | the rows of a file of prompts, of many kinds |
| `prompt_texts` | prompts as text, and lists, arrays and columns of them |
| `yaml_file` | YAML of plain values: sizes, aliases |
| `pictures` | which image formats are decoded, and how large |
| `inside` | names from a file that become paths |
| `shown` | strangers' text on a terminal |
| `lock` | one process at a time in a folder |
| `whole` | what is written: files that are whole or not there, full disks |
| `output` | what is printed: it can fail, and ends nothing |
| `earlier_run`, `resume_contract` | what a run takes over from a checkpoint's, and what may have changed since |

What is refused is refused in one line that names the file, the place in it and the remedy. Nothing here imports more of
memtrain than its errors.
"""
